//! JSON into Arrow, driven by a schema: one pass, each bad record rejected by itself.
//!
//! ```text
//!  bytes ─► size ─► UTF-8 ─► serde_json ─► for each key: find the field ─► check type and bounds ─► column
//!                               │                │                          │
//!                               ▼                ▼                          ▼
//!                        malformed-json    unknown-field, duplicate   wrong-type, out-of-range
//!                               └────────── the row under way is taken back ┘
//! ```
//!
//! Strict on purpose: a number is not a string, `1.0` and `"1"` are not whole numbers, nothing may follow the object,
//! and every field must be known. A nullable field may be left out.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::Reject;
use crate::columns::{Column, Columns};
use crate::schema::{Bounds, Field, Kind, Schema};

/// The largest record: more than a hundred times the usual, and small enough that a batch of them is no danger.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// Every reason that [`JsonDecoder::decode`] gives.
pub const REASONS: [&str; 8] = [
    "too-large",
    "not-utf8",
    "malformed-json",
    "unknown-field",
    "duplicate-field",
    "missing-field",
    "wrong-type",
    "out-of-range",
];

/// How much of an unknown field's name is repeated in a reject.
const MAX_NAME_CHARS: usize = 64;

/// Decodes JSON objects of one schema into rows.
#[derive(Debug)]
pub struct JsonDecoder {
    schema: Arc<Schema>,
    index: HashMap<String, usize>,
    columns: Columns,
}

impl JsonDecoder {
    /// A decoder without rows.
    pub fn new(schema: &Arc<Schema>) -> Self {
        let index = schema.fields.iter().enumerate().map(|(i, field)| (field.name.clone(), i)).collect();
        Self { schema: schema.clone(), index, columns: Columns::new(schema) }
    }

    /// Appends one record as a row, or says why not; then nothing of it is left.
    pub fn decode(&mut self, value: &[u8]) -> Result<(), Reject> {
        let result = self.decode_row(value);
        match result {
            Ok(()) => self.columns.commit(),
            Err(_) => self.columns.roll_back(),
        }
        result
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.columns.rows()
    }

    /// The rows since the last time, in the order they were decoded, as a batch of [`Schema::arrow`].
    pub fn finish(&mut self) -> RecordBatch {
        self.columns.finish()
    }

    fn decode_row(&mut self, value: &[u8]) -> Result<(), Reject> {
        if value.len() > MAX_RECORD_BYTES {
            return Err(Reject::new("too-large", format!("{} bytes, allowed {MAX_RECORD_BYTES}", value.len())));
        }
        let text = std::str::from_utf8(value)
            .map_err(|e| Reject::new("not-utf8", format!("the bytes after {} are not UTF-8", e.valid_up_to())))?;
        let mut reject = None;
        let mut json = serde_json::Deserializer::from_str(text);
        let record =
            Record { schema: &self.schema, index: &self.index, columns: &mut self.columns, reject: &mut reject };
        json.deserialize_map(record).and_then(|()| json.end()).map_err(|e| reject.unwrap_or_else(|| classify(text, &e)))
    }
}

/// A reject for what serde_json itself refused. Its messages about syntax hold nothing of the payload; its messages
/// about data would.
fn classify(text: &str, error: &serde_json::Error) -> Reject {
    if error.is_data() {
        return Reject::new("wrong-type", "the payload is not a JSON object");
    }
    let message = error.to_string();
    if message.starts_with("number out of range") {
        return Reject::new("out-of-range", message);
    }
    match no_number(text, error) {
        Some(name) => Reject::new("malformed-json", format!("{name} is no number in JSON: {message}")),
        None => Reject::new("malformed-json", message),
    }
}

/// What many serializers write for a floating-point number that JSON does not have, if that is where the error is.
fn no_number(text: &str, error: &serde_json::Error) -> Option<&'static str> {
    let line = text.split('\n').nth(error.line().checked_sub(1)?)?;
    let begin = line.get(..error.column().saturating_sub(1))?.rfind([':', ',', '[']).map_or(0, |at| at + 1);
    let word = line[begin..].trim_start().trim_start_matches(['-', '+']);
    ["NaN", "nan", "Infinity", "inf"].into_iter().find(|name| word.starts_with(name))
}

/// The whole object.
struct Record<'a> {
    schema: &'a Schema,
    index: &'a HashMap<String, usize>,
    columns: &'a mut Columns,
    reject: &'a mut Option<Reject>,
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = &self.schema.fields;
        let mut expected = 0;
        let mut filled = 0;
        while let Some(i) = map.next_key_seed(Key { fields, index: self.index, expected, reject: &mut *self.reject })? {
            if self.columns.is_filled(i) {
                return Err(refuse(self.reject, "duplicate-field", format!("{} appears twice", fields[i].name)));
            }
            map.next_value_seed(Value {
                field: &fields[i],
                column: self.columns.column(i),
                reject: &mut *self.reject,
            })?;
            expected = i + 1;
            filled += 1;
        }
        if filled == fields.len() {
            return Ok(());
        }
        for (i, field) in fields.iter().enumerate() {
            if !self.columns.is_filled(i) {
                if !field.nullable {
                    return Err(refuse(self.reject, "missing-field", format!("{} is missing", field.name)));
                }
                self.columns.column(i).push_null();
            }
        }
        Ok(())
    }
}

/// Notes why, and gives serde something to carry it out with.
fn refuse<E: serde::de::Error>(slot: &mut Option<Reject>, reason: &'static str, detail: String) -> E {
    *slot = Some(Reject::new(reason, detail));
    E::custom("")
}

/// A key, which becomes the place of its field.
struct Key<'a> {
    fields: &'a [Field],
    index: &'a HashMap<String, usize>,
    /// The place after that of the key before: cars send fields in order, which saves the look-up.
    expected: usize,
    reject: &'a mut Option<Reject>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<usize, E> {
        if self.fields.get(self.expected).is_some_and(|field| field.name == key) {
            return Ok(self.expected);
        }
        self.index.get(key).copied().ok_or_else(|| {
            let mut name: String = key.chars().take(MAX_NAME_CHARS).collect();
            if name.len() < key.len() {
                name.push('…');
            }
            refuse(self.reject, "unknown-field", format!("{name:?} is not a field of the schema"))
        })
    }
}

/// A value, which goes into its column.
struct Value<'a> {
    field: &'a Field,
    column: &'a mut Column,
    reject: &'a mut Option<Reject>,
}

impl Value<'_> {
    fn wrong_type<E: serde::de::Error>(self, found: &str) -> E {
        let Field { name, kind, .. } = self.field;
        refuse(self.reject, "wrong-type", format!("{name} is {found}, expected {}", kind.name()))
    }

    fn out_of_range<E: serde::de::Error>(
        self,
        found: impl fmt::Debug,
        min: impl fmt::Debug,
        max: impl fmt::Debug,
    ) -> E {
        let name = &self.field.name;
        let unit = self.field.unit.as_ref().map(|unit| format!(" {unit}")).unwrap_or_default();
        let detail = match self.field.pii {
            Some(_) => format!("{name} is outside {min:?} to {max:?}{unit}"),
            None => format!("{name} is {found:?}, allowed {min:?} to {max:?}{unit}"),
        };
        refuse(self.reject, "out-of-range", detail)
    }

    fn whole<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        let (min, max) = match self.field.bounds {
            Some(Bounds::Integer { min, max }) => (min, max),
            _ => (i64::MIN, i64::MAX),
        };
        if value < min || value > max {
            return Err(self.out_of_range(value, min, max));
        }
        match self.field.kind {
            Kind::Long | Kind::TimestampMillis => self.column.push_long(value),
            Kind::Int => match i32::try_from(value) {
                Ok(value) => self.column.push_int(value),
                Err(_) => return Err(self.out_of_range(value, i32::MIN, i32::MAX)),
            },
            // Above 2^53 to the nearest; so does every JSON parser.
            Kind::Float | Kind::Double => return self.real(value as f64),
            Kind::Boolean | Kind::String => return Err(self.wrong_type("a number")),
        }
        Ok(())
    }

    fn real<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        let (min, max) = match self.field.bounds {
            Some(Bounds::Real { min, max }) => (min, max),
            _ => (f64::NEG_INFINITY, f64::INFINITY),
        };
        if !(min..=max).contains(&value) {
            return Err(self.out_of_range(value, min, max));
        }
        match self.field.kind {
            Kind::Double => self.column.push_double(value),
            Kind::Float if (value as f32).is_finite() => self.column.push_float(value as f32),
            Kind::Float => return Err(self.out_of_range(value, f32::MIN, f32::MAX)),
            // The parser's form of the whole number -0.
            Kind::Int | Kind::Long | Kind::TimestampMillis if value == 0.0 && value.is_sign_negative() => {
                return self.whole(0);
            }
            Kind::Int | Kind::Long | Kind::TimestampMillis => {
                return Err(self.wrong_type("a number with a fraction or exponent, or beyond 64 bits"));
            }
            Kind::Boolean | Kind::String => return Err(self.wrong_type("a number")),
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.field.kind.name())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.whole(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        match (i64::try_from(value), self.field.kind) {
            (Ok(value), _) => self.whole(value),
            (Err(_), Kind::Int | Kind::Long | Kind::TimestampMillis) => {
                Err(self.out_of_range(value, i64::MIN, i64::MAX))
            }
            (Err(_), _) => self.real(value as f64),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.real(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        if self.field.kind != Kind::String {
            return Err(self.wrong_type("a string"));
        }
        if let Some(Bounds::Length { min, max }) = self.field.bounds {
            let chars = value.chars().count();
            if chars < min || chars > max {
                let found = if chars == 1 { "1 character".to_owned() } else { format!("{chars} characters") };
                let allowed = match (min, max) {
                    (min, max) if min == max => min.to_string(),
                    (0, max) => format!("at most {max}"),
                    (min, usize::MAX) => format!("at least {min}"),
                    (min, max) => format!("{min} to {max}"),
                };
                let detail = format!("{} has {found}, allowed {allowed}", self.field.name);
                return Err(refuse(self.reject, "out-of-range", detail));
            }
        }
        self.column.push_text(value);
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if self.field.kind != Kind::Boolean {
            return Err(self.wrong_type("true or false"));
        }
        self.column.push_boolean(value);
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if !self.field.nullable {
            return Err(self.wrong_type("null"));
        }
        self.column.push_null();
        Ok(())
    }

    // Refused before anything in it is read, so that no nesting is deep.
    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.wrong_type("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.wrong_type("an object"))
    }
}
