//! What a deployment puts into a registry, and what a stage wants to find there.

use std::collections::BTreeSet;

use telemetry::schema::{Schema, Schemas};

use crate::{COMPATIBILITY, Error, Registered, Registry, subject};

/// The remedy for a registry that lacks something.
const DEPLOY: &str = "run `carstream deploy` of this release with --schema-registry";

/// What a deployment came to.
#[derive(Debug, Clone, Default)]
pub struct Deployed {
    /// What the registry has now, one line each.
    pub lines: Vec<String>,
    /// What differs; with `check`, also what is only missing.
    pub problems: Vec<String>,
}

/// Registers, for each topic, all versions of the record that its file is one of, oldest first, and sets
/// [`COMPATIBILITY`]. Where a version does not fit what the subject holds, the subject is left as it is, and that is a
/// problem. With `check` nothing is changed. Blocking; can run again.
pub fn deploy(registry: &Registry, own: &Schemas, uses: &[(&str, &str)], check: bool) -> Result<Deployed, Error> {
    let mut deployed = Deployed::default();
    let mut versions: Vec<(String, std::sync::Arc<Schema>)> = Vec::new();
    for (topic, file) in uses {
        let (subject, ours) = (subject(topic), own.versions_of(file));
        let held = registry.versions(&subject)?;
        let unfit: Vec<_> = ours.iter().flat_map(|schema| unfit(&subject, schema, &held)).collect();
        if unfit.is_empty() {
            deployed.compatibility(registry, &subject, check)?;
            versions.extend(ours.into_iter().map(|schema| (subject.clone(), schema)));
        }
        deployed.problems.extend(unfit);
    }
    // In the order of ids.json: a registry that holds nothing else then gives those very ids.
    versions.sort_by_key(|(_, schema)| schema.id);
    let mut other_ids = false;
    for (subject, schema) in &versions {
        if let Some(found) = deployed.version(registry, subject, schema, check)? {
            other_ids |= schema.id != Some(found.id);
        }
    }
    if other_ids {
        deployed.lines.push(
            "these ids differ from the contract's ids.json: everything that writes or reads these logs needs \
             --schema-registry"
                .to_owned(),
        );
    }
    Ok(deployed)
}

impl Deployed {
    fn compatibility(&mut self, registry: &Registry, subject: &str, check: bool) -> Result<(), Error> {
        let held = registry.compatibility(subject)?;
        match held.as_deref() {
            Some(COMPATIBILITY) => {}
            held if check => {
                let held = held.unwrap_or("not set");
                self.problems
                    .push(format!("subject {subject}: compatibility is {held}, not {COMPATIBILITY}: {DEPLOY}"));
            }
            held => {
                registry.set_compatibility(subject, COMPATIBILITY)?;
                let before = held.map(|held| format!(", was {held}")).unwrap_or_default();
                self.lines.push(format!("subject {subject}: compatibility is {COMPATIBILITY} now{before}"));
            }
        }
        Ok(())
    }

    fn version(
        &mut self,
        registry: &Registry,
        subject: &str,
        schema: &Schema,
        check: bool,
    ) -> Result<Option<Registered>, Error> {
        let mut found = registry.find(subject, &schema.json)?;
        let mut now = "";
        if found.is_none() && !check {
            match registry.register(subject, &schema.json) {
                Err(Error::Refused { status: 409, message, .. }) => {
                    self.problems.push(format!("subject {subject}: {} is refused: {message}", schema.file));
                    return Ok(None);
                }
                registered => registered?,
            }
            now = ", registered now";
            found = registry.find(subject, &schema.json)?;
        }
        match &found {
            Some(Registered { version, id, .. }) => {
                self.lines.push(format!("subject {subject}: {} is version {version}, id {id}{now}", schema.file));
            }
            None => self.problems.push(format!("subject {subject}: {} is not registered: {DEPLOY}", schema.file)),
        }
        Ok(found)
    }
}

impl Registry {
    /// What a stage needs to know before it starts: the ids of its own schemas, and all other versions that the
    /// subjects hold. Blocking.
    pub(crate) fn check(&self, own: &Schemas, uses: &[(String, String)]) -> Result<Vec<Schema>, Error> {
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for (topic, file) in uses.iter().collect::<BTreeSet<_>>() {
            let subject = subject(topic);
            let Some(ours) = own.file(file) else {
                problems.push(format!("subject {subject}: schema {file} does not exist"));
                continue;
            };
            let held = self.versions(&subject)?;
            let unfit = unfit(&subject, ours, &held);
            if !unfit.is_empty() {
                problems.extend(unfit);
                continue;
            }
            let Some(registered) = self.find(&subject, &ours.json)? else {
                let held = held.last().map_or("none".to_owned(), |held| format!("{} as the newest", held.version));
                problems
                    .push(format!("subject {subject} does not hold {file} (of its versions it has {held}): {DEPLOY}"));
                continue;
            };
            let others = held.iter().filter(|held| held.id != registered.id);
            found.extend(others.filter_map(|held| theirs(&subject, held).ok()));
            found.push(Schema { id: Some(registered.id), ..Schema::clone(ours) });
            if self.compatibility(&subject)?.as_deref() != Some(COMPATIBILITY) {
                tracing::warn!(
                    "subject {subject} in {} does not enforce {COMPATIBILITY}: a schema that breaks this \
                    stage could be registered; {DEPLOY}",
                    self.url()
                );
            }
        }
        if problems.is_empty() { Ok(found) } else { Err(Error::Unfit { registry: self.url().to_string(), problems }) }
    }
}

/// What a subject holds and this schema does not go with, a sentence for each version.
fn unfit(subject: &str, ours: &Schema, held: &[Registered]) -> Vec<String> {
    let said = |held: &Registered| {
        let differences = match theirs(subject, held) {
            Ok(theirs) => ours.differences(&theirs),
            Err(error) => vec![error.to_string()],
        };
        (!differences.is_empty()).then(|| {
            format!(
                "subject {subject}: {} is not compatible with version {} (id {}) there: {}",
                ours.file,
                held.version,
                held.id,
                differences.join(", ")
            )
        })
    };
    held.iter().filter_map(said).collect()
}

fn theirs(subject: &str, held: &Registered) -> Result<Schema, telemetry::schema::SchemaError> {
    Schema::of_writer(&format!("version {} of {subject}", held.version), &held.schema, held.id)
}
