//! Schemas: Avro records of plain fields, with attributes of ours on the fields.
//!
//! ```json
//! {"name": "speed", "type": "float", "unit": "m/s", "min": 0, "max": 120}
//! {"name": "plate", "type": "string", "pii": "personal", "max_length": 20}
//! {"name": "ambient_temp", "type": ["null", "float"], "default": null}
//! ```
//!
//! A subset of Avro on purpose: a record of boolean, int, long (also timestamp-millis), float, double and string, each
//! optional as `["null", T]` with the default `null`. Anything else is refused by name, and so is an attribute that
//! nobody knows: a misspelt `"pii"` must not turn a personal field into a harmless one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use serde::Deserialize;

use crate::declaration;

/// The time zone of every timestamp column.
pub const UTC: &str = "+00:00";

/// A set of schemas: by file name, and those that go over the wire as Avro also by id.
#[derive(Debug, Clone)]
pub struct Schemas {
    by_file: BTreeMap<String, Arc<Schema>>,
    by_id: BTreeMap<u32, Arc<Schema>>,
}

impl Schemas {
    /// A set of these; those with an id can be written and read by it. Of two with the same file name, or id, the last
    /// one is kept: whoever collects them says so before.
    pub fn new(schemas: impl IntoIterator<Item = Schema>) -> Self {
        let schemas = schemas.into_iter().map(Arc::new);
        let by_file: BTreeMap<_, _> = schemas.map(|schema| (schema.file.clone(), schema)).collect();
        let by_id = by_file.values().filter_map(|schema| Some((schema.id?, schema.clone()))).collect();
        Self { by_file, by_id }
    }

    /// The schema in `file`, such as `telemetry.v2.avsc`.
    pub fn file(&self, file: &str) -> Option<&Arc<Schema>> {
        self.by_file.get(file)
    }

    /// The schema with this id on the wire.
    pub fn id(&self, id: u32) -> Option<&Arc<Schema>> {
        self.by_id.get(&id)
    }

    /// All schemas that have an id.
    pub fn with_ids(&self) -> impl Iterator<Item = (u32, &Arc<Schema>)> {
        self.by_id.iter().map(|(id, schema)| (*id, schema))
    }

    /// The versions of the record that `file` is one of: those with an id, in the order of their ids.
    pub fn versions_of(&self, file: &str) -> Vec<Arc<Schema>> {
        let name = self.file(file).map(|schema| schema.name.as_str());
        self.by_id.values().filter(|schema| Some(schema.name.as_str()) == name).cloned().collect()
    }

    /// The same files with the ids that a schema registry has given, in place of those that they had. `found` has an id
    /// each: a file of this set, or a version that only the registry knows, whose records can be read as well. What is
    /// not among them has no id any more.
    pub fn with_ids_of(&self, found: impl IntoIterator<Item = Schema>) -> Self {
        let found = found.into_iter().filter_map(|schema| Some((schema.id?, Arc::new(schema))));
        let by_id: BTreeMap<u32, Arc<Schema>> = found.collect();
        let renumbered = |(file, schema): (&String, &Arc<Schema>)| {
            let found = by_id.values().find(|found| found.file == *file).cloned();
            (file.clone(), found.unwrap_or_else(|| Arc::new(Schema { id: None, ..Schema::clone(schema) })))
        };
        Self { by_file: self.by_file.iter().map(renumbered).collect(), by_id }
    }
}

/// One schema.
#[derive(Debug, Clone)]
pub struct Schema {
    /// File name, or a human-readable origin for schemas from a registry.
    pub file: String,
    /// Its id in the Confluent header, if it goes over the wire.
    pub id: Option<u32>,
    /// The record's full name. Only schemas of one name resolve into each other.
    pub name: String,
    /// The text, as Avro takes it.
    pub json: String,
    /// The fields, in order.
    pub fields: Vec<Field>,
    /// The same as an Arrow schema; a field's unit is in its metadata.
    pub arrow: SchemaRef,
}

impl Schema {
    /// Parses the text of one `.avsc` file.
    pub fn parse(file: &str, text: &str, id: Option<u32>) -> Result<Self, SchemaError> {
        let error = |what: String| SchemaError::new(file, what);
        let declared: DeclaredRecord = serde_json::from_str(text).map_err(|e| {
            let (line, what) = declaration::explain(text, &e);
            SchemaError { line, ..error(what) }
        })?;
        if declared.kind != "record" {
            return Err(error(format!("is a {:?}, expected a \"record\"", declared.kind)));
        }
        let field = |declared: DeclaredField| {
            let name = declared.name.clone();
            Field::new(declared).map_err(|what| SchemaError { field: Some(name), ..error(what) })
        };
        let fields = declared.fields.into_iter().map(field).collect::<Result<Vec<_>, _>>()?;
        let name = match declared.namespace {
            Some(namespace) => format!("{namespace}.{}", declared.name),
            None => declared.name,
        };
        Self::new(file, id, name, text, fields).map_err(error)
    }

    pub(crate) fn new(
        file: &str,
        id: Option<u32>,
        name: String,
        text: &str,
        fields: Vec<Field>,
    ) -> Result<Self, String> {
        for (i, field) in fields.iter().enumerate() {
            if fields[..i].iter().any(|f| f.name == field.name) {
                return Err(format!("has two fields {}", field.name));
            }
        }
        let arrow = Arc::new(arrow::datatypes::Schema::new(fields.iter().map(Field::arrow).collect::<Vec<_>>()));
        Ok(Self { file: file.to_owned(), id, name, json: text.to_owned(), fields, arrow })
    }

    /// The field with this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The place of the field with this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }
}

/// One field of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether it may be null, and then may also be left out.
    pub nullable: bool,
    /// Whether a reader can do without it in the written record: it has a default.
    pub has_default: bool,
    /// What it says about a person.
    pub pii: Option<Pii>,
    /// What values are possible; `None`: all of the type.
    pub bounds: Option<Bounds>,
    /// Its unit, such as `m/s`.
    pub unit: Option<String>,
}

impl Field {
    fn new(declared: DeclaredField) -> Result<Self, String> {
        let name = declared.name;
        let (kind, nullable) = declared.kind.resolve().map_err(|what| format!("field {name}: {what}"))?;
        match (&declared.default, nullable) {
            (None, false) => {}
            (Some(serde_json::Value::Null), true) => {}
            (None, true) => return Err(format!("field {name}: a type with \"null\" needs \"default\": null")),
            (Some(_), _) => return Err(format!("field {name}: the only default here is null, for [\"null\", T]")),
        }
        let range = (declared.min, declared.max);
        let length = (declared.min_length, declared.max_length);
        let bounds = match (kind, range, length) {
            (_, (None, None), (None, None)) => None,
            (Kind::String, (None, None), (min, max)) => {
                Some(Bounds::Length { min: min.unwrap_or(0), max: max.unwrap_or(usize::MAX) })
            }
            (Kind::Int | Kind::Long | Kind::TimestampMillis, (min, max), (None, None)) => {
                let whole = |bound: Option<serde_json::Number>, otherwise| match bound {
                    None => Ok(otherwise),
                    Some(n) => n.as_i64().ok_or(format!("field {name}: the bound {n} is not a whole number")),
                };
                Some(Bounds::Integer { min: whole(min, i64::MIN)?, max: whole(max, i64::MAX)? })
            }
            (Kind::Float | Kind::Double, (min, max), (None, None)) => {
                let real = |n: Option<serde_json::Number>, otherwise| n.and_then(|n| n.as_f64()).unwrap_or(otherwise);
                Some(Bounds::Real { min: real(min, f64::NEG_INFINITY), max: real(max, f64::INFINITY) })
            }
            _ => {
                return Err(format!(
                    "field {name}: min and max are for numbers, min_length and max_length for strings"
                ));
            }
        };
        let crossed = match bounds {
            Some(Bounds::Integer { min, max }) if min > max => Some(format!("min {min} is above max {max}")),
            Some(Bounds::Real { min, max }) if min > max => Some(format!("min {min} is above max {max}")),
            Some(Bounds::Length { min, max }) if min > max => {
                Some(format!("min_length {min} is above max_length {max}"))
            }
            _ => None,
        };
        if let Some(what) = crossed {
            return Err(format!("field {name}: {what}: no value fits"));
        }
        Ok(Self { name, kind, nullable, has_default: nullable, pii: declared.pii, bounds, unit: declared.unit })
    }

    fn arrow(&self) -> arrow::datatypes::Field {
        let field = arrow::datatypes::Field::new(&self.name, self.kind.arrow(), self.nullable);
        match &self.unit {
            Some(unit) => field.with_metadata(HashMap::from([("unit".to_owned(), unit.clone())])),
            None => field,
        }
    }
}

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Arrow `Boolean`.
    Boolean,
    /// Arrow `Int32`.
    Int,
    /// Arrow `Int64`.
    Long,
    /// Arrow `Timestamp(Millisecond, "+00:00")`.
    TimestampMillis,
    /// Arrow `Float32`.
    Float,
    /// Arrow `Float64`.
    Double,
    /// Arrow `Utf8`.
    String,
}

impl Kind {
    /// The type of its column.
    pub fn arrow(self) -> DataType {
        match self {
            Kind::Boolean => DataType::Boolean,
            Kind::Int => DataType::Int32,
            Kind::Long => DataType::Int64,
            Kind::TimestampMillis => DataType::Timestamp(TimeUnit::Millisecond, Some(UTC.into())),
            Kind::Float => DataType::Float32,
            Kind::Double => DataType::Float64,
            Kind::String => DataType::Utf8,
        }
    }

    /// Its name in an `.avsc` file.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Boolean => "boolean",
            Kind::Int => "int",
            Kind::Long => "long",
            Kind::TimestampMillis => "timestamp-millis",
            Kind::Float => "float",
            Kind::Double => "double",
            Kind::String => "string",
        }
    }
}

/// What a field says about a person; decides which functions may let it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pii {
    /// Tells one car or person from all others: VIN, trip.
    Identifier,
    /// Says who: names, plates, addresses.
    Personal,
    /// Says where.
    Location,
}

impl Pii {
    /// Its name in an `.avsc` file.
    pub fn name(self) -> &'static str {
        match self {
            Pii::Identifier => "identifier",
            Pii::Personal => "personal",
            Pii::Location => "location",
        }
    }
}

/// What values a field can have. Both ends are allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // min and max say it
pub enum Bounds {
    /// Of an int, long or timestamp.
    Integer { min: i64, max: i64 },
    /// Of a float or double.
    Real { min: f64, max: f64 },
    /// Of a string, in characters.
    Length { min: usize, max: usize },
}

/// What is wrong with a schema file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema {file}: {what}")]
pub struct SchemaError {
    /// The file.
    pub file: String,
    /// What is wrong.
    pub what: String,
    /// The line that cannot be parsed.
    pub line: Option<usize>,
    /// The field that it is about.
    pub field: Option<String>,
}

impl SchemaError {
    pub(crate) fn new(file: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), what: what.into(), line: None, field: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredRecord {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    namespace: Option<String>,
    #[serde(rename = "doc")]
    _doc: Option<String>,
    fields: Vec<DeclaredField>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredField {
    name: String,
    #[serde(rename = "type")]
    kind: DeclaredType,
    #[serde(rename = "doc")]
    _doc: Option<String>,
    #[serde(default, deserialize_with = "some")]
    default: Option<serde_json::Value>,
    pii: Option<Pii>,
    min: Option<serde_json::Number>,
    max: Option<serde_json::Number>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    unit: Option<String>,
}

/// Tells `"default": null` from no default.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DeclaredType {
    Plain(String),
    Union(Vec<DeclaredType>),
    Annotated(serde_json::Value),
}

impl DeclaredType {
    fn resolve(&self) -> Result<(Kind, bool), String> {
        match self {
            Self::Plain(name) => {
                let kinds = [Kind::Boolean, Kind::Int, Kind::Long, Kind::Float, Kind::Double, Kind::String];
                match kinds.into_iter().find(|kind| kind.name() == name) {
                    Some(kind) => Ok((kind, false)),
                    None => Err(impossible(name)),
                }
            }
            Self::Union(branches) => match branches.as_slice() {
                [Self::Plain(null), kind] if null == "null" && !matches!(kind, Self::Union(_)) => {
                    Ok((kind.resolve()?.0, true))
                }
                _ => Err("a type that may be null is written [\"null\", T]; no other union is possible".to_owned()),
            },
            Self::Annotated(value) => {
                if *value == serde_json::json!({"type": "long", "logicalType": "timestamp-millis"}) {
                    Ok((Kind::TimestampMillis, false))
                } else {
                    let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str);
                    let logical = text("logicalType").map(|name| format!(" with logicalType {name}"));
                    let name = text("type").map_or_else(|| value.to_string(), str::to_owned);
                    Err(impossible(&(name + &logical.unwrap_or_default())))
                }
            }
        }
    }
}

/// A type that a field cannot have, and what to use.
fn impossible(name: &str) -> String {
    format!(
        "type {name} is not possible: use boolean, int, long (also timestamp-millis), float, double or string; for a \
         choice, a string with max_length"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &str) -> Result<Field, String> {
        let schema = format!(r#"{{"type": "record", "name": "R", "fields": [{text}]}}"#);
        Schema::parse("r.avsc", &schema, None).map(|mut s| s.fields.remove(0)).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, message) in [
            (
                r#"{"name": "a", "type": "string", "ppi": "personal"}"#,
                "a: there is no attribute ppi; expected name, type",
            ),
            (r#"{"name": "a", "type": "string", "pii": "secret"}"#, "a: pii is \"secret\"; expected identifier, "),
            (r#"{"name": "a", "type": "bytes"}"#, "field a: type bytes is not possible: use boolean, int, long"),
            (r#"{"name": "a", "type": {"type": "enum", "name": "E", "symbols": ["A"]}}"#, "type enum is not possible"),
            (r#"{"name": "a", "type": {"type": "array", "items": "int"}}"#, "type array is not possible"),
            (r#"{"name": "a", "type": ["int", "null"]}"#, "may be null is written"),
            (r#"{"name": "a", "type": "int", "min": 5, "max": 3}"#, "field a: min 5 is above max 3"),
            (r#"{"name": "a", "type": "float", "min": 0.5, "max": 0.1}"#, "min 0.5 is above max 0.1"),
            (r#"{"name": "a", "type": "string", "min_length": 5, "max_length": 3}"#, "min_length 5 is above"),
            (r#"{"name": "a", "type": ["null", "int"]}"#, "needs \"default\": null"),
            (r#"{"name": "a", "type": "int", "default": 3}"#, "the only default here is null"),
            (r#"{"name": "a", "type": "int", "default": null}"#, "the only default here is null"),
            (r#"{"name": "a", "type": "int", "max_length": 3}"#, "min and max are for numbers"),
            (r#"{"name": "a", "type": "int", "max": 3.5}"#, "the bound 3.5 is not a whole number"),
            (
                r#"{"name": "a", "type": {"type": "int", "logicalType": "date"}}"#,
                "type int with logicalType date is not",
            ),
            (r#"{"name": "a", "type": "int"}, {"name": "a", "type": "int"}"#, "two fields a"),
        ] {
            let error = field(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
            assert!(error.starts_with("schema r.avsc: "), "{error}");
        }
    }
}
