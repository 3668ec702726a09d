//! The output columns against the declared schema: by name; types and nulls as declared. A cast only where nothing is
//! lost.

use arrow::datatypes::DataType;
use datafusion_expr::{Expr, ExprSchemable};
use telemetry::schema::Schema;

use super::lineage::Lineage;
use super::shape::Shape;
use super::words::in_words_of_a_schema;

/// For each column of the schema: which output column it is.
pub(super) fn assign(shape: &Shape, lineage: &[Lineage], declared: &Schema) -> Result<Vec<usize>, Vec<String>> {
    let mut problems = Vec::new();
    let mut assigned = Vec::new();
    for (i, column) in lineage.iter().enumerate() {
        if declared.index_of(&column.column).is_none() {
            problems.push(format!("column {} is not in {}: leave it out or declare it", column.column, declared.file));
        }
        if lineage[..i].iter().any(|other| other.column == column.column) {
            problems.push(format!("column {} is there twice", column.column));
        }
    }
    for (field, wanted) in declared.fields.iter().zip(declared.arrow.fields()) {
        let Some(at) = lineage.iter().position(|column| column.column == field.name) else {
            problems.push(format!("column {} is missing: {} declares it", field.name, declared.file));
            continue;
        };
        match check(&shape.columns[at], shape, wanted) {
            Ok(()) => assigned.push(at),
            Err(problem) => problems.push(format!("column {}: {problem}", field.name)),
        }
    }
    if problems.is_empty() { Ok(assigned) } else { Err(problems) }
}

fn check(expr: &Expr, shape: &Shape, wanted: &arrow::datatypes::Field) -> Result<(), String> {
    let (found, nullable) = expr
        .get_type(shape.schema.as_ref())
        .and_then(|found| Ok((found, expr.nullable(shape.schema.as_ref())?)))
        .map_err(|e| e.to_string())?;
    if !is_lossless(&found, wanted.data_type()) {
        let (found, wanted) = (name(&found), name(wanted.data_type()));
        let sql = SQL_TYPES.iter().find(|(schema, _)| *schema == wanted).map_or("…", |(_, sql)| sql);
        let an = |word: &str| if word.starts_with('i') { format!("an {word}") } else { format!("a {word}") };
        return Err(format!(
            "is {}, declared as {wanted}: use TRY_CAST(… AS {sql}), which gives null where a value does not fit, or \
             declare {found}",
            an(&found)
        ));
    }
    if nullable && !wanted.is_nullable() {
        return Err("can be null, declared as never null: use coalesce(…, a value), or declare it [\"null\", …]".into());
    }
    Ok(())
}

/// Types as schemas call them, and as SQL does.
const SQL_TYPES: [(&str, &str); 7] = [
    ("boolean", "BOOLEAN"),
    ("int", "INT"),
    ("long", "BIGINT"),
    ("float", "FLOAT"),
    ("double", "DOUBLE"),
    ("string", "VARCHAR"),
    ("timestamp-millis", "TIMESTAMP"),
];

/// A type as a schema calls it.
fn name(data_type: &DataType) -> String {
    in_words_of_a_schema(&data_type.to_string())
}

/// Whether every value of the one type is a value of the other.
fn is_lossless(from: &DataType, to: &DataType) -> bool {
    use DataType::{Float32, Float64, Int8, Int16, Int32, Int64, Null, UInt8, UInt16, UInt32};
    match (from, to) {
        (from, to) if from == to => true,
        (Null, _) => true,
        (Int8 | UInt8, Int16 | Int32 | Int64 | Float32 | Float64) => true,
        (Int16 | UInt16, Int32 | Int64 | Float32 | Float64) => true,
        (Int32 | UInt32, Int64 | Float64) => true,
        (Float32, Float64) => true,
        _ => false,
    }
}
