//! Schemas of other releases: how they are taken in, and whether they and ours read each other's records.
//!
//! A schema registered by another writer is not a definition: only the wire format of its records matters. So unknown
//! attributes are ignored, unlike in a file of `schemas/`, and a default may be any value. The types are the same few,
//! because others could not be decoded.

use serde_json::Value;

use crate::schema::{Field, Kind, Schema, SchemaError};

impl Schema {
    /// Parses the text of a schema that is not in `schemas/`. `called` is its human-readable origin.
    pub fn of_writer(called: &str, text: &str, id: u32) -> Result<Self, SchemaError> {
        let error = |what: String| SchemaError::new(called, what);
        let record: Value = serde_json::from_str(text).map_err(|e| error(format!("is not JSON: {e}")))?;
        if record["type"] != "record" {
            return Err(error(format!("is a {}, expected a \"record\"", record["type"])));
        }
        let name = record["name"].as_str().ok_or_else(|| error("has no name".to_owned()))?;
        let name = match record["namespace"].as_str() {
            Some(namespace) if !name.contains('.') => format!("{namespace}.{name}"),
            _ => name.to_owned(),
        };
        let declared = record["fields"].as_array().ok_or_else(|| error("has no fields".to_owned()))?;
        let fields = declared.iter().map(field).collect::<Result<_, _>>().map_err(error)?;
        Self::new(called, Some(id), name, text, fields).map_err(error)
    }

    /// What keeps records of the one schema from being read with the other, in either direction; empty if nothing
    /// does: what Avro calls full compatibility. Each is a sentence that names both.
    pub fn differences(&self, other: &Schema) -> Vec<String> {
        let (ours, theirs) = (&self.file, &other.file);
        if self.name != other.name {
            return vec![format!("{ours} is a {}, {theirs} a {}", self.name, other.name)];
        }
        let mut differences = Vec::new();
        for field in &self.fields {
            let name = &field.name;
            match other.field(name) {
                Some(found) if (found.kind, found.nullable) != (field.kind, field.nullable) => {
                    differences.push(format!("{name} is {} in {ours}, {} in {theirs}", shape(field), shape(found)));
                }
                Some(_) => {}
                None => differences.extend(needed(field, ours, theirs)),
            }
        }
        for field in other.fields.iter().filter(|field| self.field(&field.name).is_none()) {
            differences.extend(needed(field, theirs, ours));
        }
        differences
    }
}

fn shape(field: &Field) -> String {
    format!("{}{}", if field.nullable { "optional " } else { "" }, field.kind.name())
}

fn needed(field: &Field, there: &str, missing: &str) -> Option<String> {
    (!field.has_default).then(|| format!("{} is in {there}, without a default, and not in {missing}", field.name))
}

fn field(declared: &Value) -> Result<Field, String> {
    let name = declared["name"].as_str().ok_or_else(|| format!("has a field without a name: {declared}"))?.to_owned();
    let kind = match &declared["type"] {
        Value::Array(branches) => match branches.as_slice() {
            [Value::String(null), kind] if null == "null" => kind_of(kind).map(|kind| (kind, true)),
            _ => Err("the only union that can be read is [\"null\", T]".to_owned()),
        },
        kind => kind_of(kind).map(|kind| (kind, false)),
    };
    let (kind, nullable) = kind.map_err(|what| format!("field {name}: {what}"))?;
    let has_default = declared.get("default").is_some();
    Ok(Field { name, kind, nullable, has_default, pii: None, bounds: None, unit: None })
}

fn kind_of(declared: &Value) -> Result<Kind, String> {
    let kinds = [Kind::Boolean, Kind::Int, Kind::Long, Kind::Float, Kind::Double, Kind::String];
    match declared {
        Value::String(name) => kinds
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("a type {name:?} cannot be read, only boolean, int, long, float, double, string")),
        // Avro: a logical type that a reader does not know is the type below it.
        Value::Object(annotated) => match kind_of(&declared["type"])? {
            Kind::Long if annotated.get("logicalType").is_some_and(|logical| logical == "timestamp-millis") => {
                Ok(Kind::TimestampMillis)
            }
            kind => Ok(kind),
        },
        other => Err(format!("a type {other} cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(called: &str, fields: &str) -> Schema {
        let text = format!(r#"{{"type": "record", "namespace": "n", "name": "R", "fields": [{fields}]}}"#);
        Schema::of_writer(called, &text, 7).unwrap()
    }

    #[test]
    fn what_a_registry_may_hold_is_taken_in() {
        let schema = record(
            "version 3",
            r#"{"name": "a", "type": {"type": "string", "avro.java.string": "String"}, "aliases": ["x"]},
               {"name": "t", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": null},
               {"name": "u", "type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 0}"#,
        );
        let fields: Vec<_> = schema.fields.iter().map(|f| (f.kind, f.nullable, f.has_default)).collect();
        let wanted = [(Kind::String, false, false), (Kind::TimestampMillis, true, true), (Kind::Long, false, true)];
        assert_eq!((schema.name.as_str(), schema.id, &fields[..]), ("n.R", Some(7), &wanted[..]));
        for (text, message) in [
            ("[]", "expected a \"record\""),
            (
                r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "bytes"}]}"#,
                "\"bytes\" cannot be read",
            ),
            (
                r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": ["int", "null"]}]}"#,
                "the only union",
            ),
        ] {
            let error = Schema::of_writer("version 4", text, 1).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("version 4"), "{error}");
        }
    }

    #[test]
    fn every_difference_is_said_with_both_sides() {
        let ours = record("ours", r#"{"name": "a", "type": "float"}, {"name": "b", "type": "int"}"#);
        let theirs = record(
            "theirs",
            r#"{"name": "a", "type": "double"}, {"name": "c", "type": "long", "default": 1},
                {"name": "d", "type": "long"}"#,
        );
        let wanted = [
            "a is float in ours, double in theirs",
            "b is in ours, without a default, and not in theirs",
            "d is in theirs, without a default, and not in ours",
        ];
        assert_eq!(ours.differences(&theirs), wanted);
        let optional = record("theirs", r#"{"name": "a", "type": ["null", "float"]}, {"name": "b", "type": "int"}"#);
        assert_eq!(ours.differences(&optional), ["a is float in ours, optional float in theirs"]);
        let other = Schema { name: "n.S".to_owned(), ..ours.clone() };
        assert_eq!(ours.differences(&other), ["ours is a n.R, ours a n.S"]);
    }
}
