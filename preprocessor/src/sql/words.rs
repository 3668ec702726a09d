//! How types and expressions are named in messages: as in schemas and statements, not as in the planner.

use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_common::{Column, ScalarValue};
use datafusion_expr::Expr;

/// A text with the names of types as schemas have them.
pub(super) fn in_words_of_a_schema(text: &str) -> String {
    let arrow = [
        ("Boolean", "boolean"),
        ("Int32", "int"),
        ("Int64", "long"),
        ("Float32", "float"),
        ("Float64", "double"),
        ("Utf8View", "string"),
        ("Utf8", "string"),
        ("Timestamp(ms, \"+00:00\")", "timestamp-millis"),
        ("Timestamp(Millisecond, Some(\"+00:00\"))", "timestamp-millis"),
    ];
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut text = text.to_owned();
    for (from, to) in arrow {
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find(from) {
            let (before, behind) = (&rest[..at], &rest[at + from.len()..]);
            let whole = !before.ends_with(is_name) && !behind.starts_with(is_name);
            out += before;
            out += if whole { to } else { from };
            rest = behind;
        }
        text = out + rest;
    }
    text
}

/// An expression as one would write it: with values, not with the planner's types around them.
pub(super) fn shown(expr: &Expr) -> String {
    let plain = expr.clone().transform(|expr| {
        Ok(match &expr {
            Expr::Literal(value, _) => {
                let text = match value {
                    ScalarValue::Utf8(Some(text)) => format!("'{text}'"),
                    value => value.to_string(),
                };
                Transformed::yes(Expr::Column(Column::new_unqualified(text)))
            }
            _ => Transformed::no(expr),
        })
    });
    let plain = plain.map_or_else(|_| expr.clone(), |plain| plain.data);
    in_words_of_a_schema(&plain.human_display().to_string())
}
