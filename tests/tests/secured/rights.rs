//! The rights that docs/operations.md lists, as a test grants them.

use std::path::Path;

use whole_pipeline_tests::kafka::Broker;

/// A row of the table: a stage, and what it needs on one of the two sides.
struct Rights {
    user: String,
    in_cloud: bool,
    read: Vec<String>,
    write: Vec<String>,
    prefix: Vec<String>,
}

impl Rights {
    fn of_row(row: &str) -> Self {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [stage, read, write, prefix] = cells[..] else { panic!("a row of four cells: {row}") };
        let names = |cell: &str| cell.split_whitespace().map(|name| name.trim_matches('`').to_owned()).collect();
        let (user, in_cloud) = match stage.split_once(", in the cloud") {
            Some((stage, _)) => (stage, true),
            None => (stage, false),
        };
        Self { user: user.to_owned(), in_cloud, read: names(read), write: names(write), prefix: names(prefix) }
    }

    fn grant(&self, broker: &Broker) {
        let topics = |names: &[String]| options("--topic", names);
        let prefixed = |kind| [options(kind, &self.prefix), options("--resource-pattern-type", &["prefixed"])].concat();
        let mut rights = vec![("Read", topics(&self.read)), ("Write", topics(&self.write))];
        if !self.prefix.is_empty() {
            rights.extend([("Read", prefixed("--group")), ("Write", prefixed("--transactional-id"))]);
        }
        for (operation, resources) in rights.iter().filter(|(_, resources)| !resources.is_empty()) {
            broker.allow(&self.user, operation, resources);
        }
    }
}

/// The same option with each of these values.
fn options(option: &str, values: &[impl ToString]) -> Vec<String> {
    values.iter().flat_map(|value| [option.to_owned(), value.to_string()]).collect()
}

/// Grants what the page lists, and nothing else.
pub(crate) fn grant_documented(edge: &Broker, cloud: &Broker) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("| stage | Read | Write | prefix |\n").expect("the table of rights");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let rights: Vec<_> = rows.map(Rights::of_row).collect();
    let users: Vec<_> = rights.iter().map(|rights| rights.user.as_str()).collect();
    assert!(super::STAGES.iter().all(|stage| users.contains(stage)), "rows for {users:?}");
    // Kafka's tool is a JVM each time.
    std::thread::scope(|scope| {
        for rights in &rights {
            scope.spawn(|| rights.grant(if rights.in_cloud { cloud } else { edge }));
        }
    });
}
