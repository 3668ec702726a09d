//! `carstream contract explain`: the output columns of a stream and their origin, human-readable.

use std::fmt::Write;

use telemetry::schema::{Field, Pii};

use crate::sql::{Query, Source};
use contract::StreamDefinition;

/// One stream as text.
pub(crate) fn describe(definition: &StreamDefinition, query: &Query) -> String {
    let mut text = String::new();
    let (input, output) = (&definition.input, &definition.output);
    let identity = definition.identity.map(|column| input.schema.fields[column].name.as_str()).join(", ");
    let tables: Vec<_> = query
        .looked_up()
        .map(|table| &definition.tables[table])
        .map(|table| format!("{} by {} (topic {})", table.table, table.schema.fields[table.key].name, table.topic))
        .collect();
    let heading = [
        ("reads", format!("{} ({}), told apart by {identity}", input.topic, input.schema.file)),
        ("looks up", if tables.is_empty() { "nothing".to_owned() } else { tables.join(", ") }),
        (
            "writes",
            format!("{} ({}, schema id {})", definition.output_topic, output.file, output.id.unwrap_or_default()),
        ),
        ("keeps", query.filter().map_or("every reading".to_owned(), |filter| format!("those WHERE {filter}"))),
        (
            "event time",
            definition
                .event_time
                .map_or("none: not judged".to_owned(), |column| input.schema.fields[column].name.clone()),
        ),
        ("bad ones to", definition.dead_letter.to_string()),
    ];
    let _ = writeln!(text, "stream {}", definition.name);
    for (what, value) in heading {
        let _ = writeln!(text, "  {what:<12}{value}");
    }
    let _ = writeln!(text);
    write_table(&mut text, &lineage_rows(query));
    let kept = kept_back(definition, query);
    if !kept.is_empty() {
        let _ = writeln!(text, "\n  tagged, and stays at the edge:");
        for line in kept {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn lineage_rows(query: &Query) -> Vec<[String; 3]> {
    let mut rows = vec![["column".to_owned(), "from".to_owned(), "through".to_owned()]];
    for column in query.lineage() {
        let through = match column.sources.as_slice() {
            [source] if source.through.is_empty() && column.expression.ends_with(&source.column) => String::new(),
            _ => column.expression.clone(),
        };
        let mut first = Some((column.column.clone(), through));
        if column.sources.is_empty() {
            let (name, through) = first.take().unwrap_or_default();
            rows.push([name, "a constant".to_owned(), through]);
        }
        for source in &column.sources {
            let (name, through) = first.take().unwrap_or_default();
            rows.push([name, qualified(source), through]);
        }
    }
    rows
}

fn qualified(source: &Source) -> String {
    tagged(&source.table, &source.column, source.pii)
}

fn tagged(table: &str, column: &str, pii: Option<Pii>) -> String {
    match pii {
        Some(pii) => format!("{table}.{column} [{}]", pii.name()),
        None => format!("{table}.{column}"),
    }
}

/// Tagged columns of stream and tables that no output column comes from.
fn kept_back(definition: &StreamDefinition, query: &Query) -> Vec<String> {
    let input = (definition.input.table.as_str(), &definition.input.schema);
    let tables = query.looked_up().map(|table| &definition.tables[table]).map(|t| (t.table.as_str(), &t.schema));
    let mut kept = Vec::new();
    for (table, schema) in std::iter::once(input).chain(tables) {
        let comes_out = |field: &Field| {
            let mut sources = query.lineage().iter().flat_map(|column| &column.sources);
            sources.any(|source| source.table == table && source.column == field.name)
        };
        let fields = schema.fields.iter().filter(|field| !comes_out(field));
        kept.extend(fields.filter(|field| field.pii.is_some()).map(|field| tagged(table, &field.name, field.pii)));
    }
    kept
}

fn write_table(text: &mut String, rows: &[[String; 3]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    for row in rows {
        let line = format!("  {:<first$}  {:<second$}  {}", row[0], row[1], row[2]);
        let _ = writeln!(text, "{}", line.trim_end());
    }
}
