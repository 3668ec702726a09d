//! Where every output column comes from, and whether it may leave.
//!
//! A column comes from every input column that its expression mentions, conditions included: `CASE WHEN vin = 'X'`
//! says something about the VIN. An input that is tagged may only be mentioned inside the function approved for its
//! tag:
//!
//! | tag | may come out through |
//! | --- | --- |
//! | `identifier` | `pseudonym(…)` |
//! | `location` | `coarsen(column, step)` with the column by itself and a step of at least 0.01 |
//! | `personal` | nothing |

use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_expr::Expr;
use telemetry::schema::{Field, Pii};

use super::functions::{COARSEN, MIN_COARSEN_STEP, PSEUDONYM, hides_position};
use super::shape::{Shape, is_of};
use super::words::shown;
use contract::StreamDefinition;

/// Where one output column comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// Its name.
    pub column: String,
    /// The expression.
    pub expression: String,
    /// The inputs, in the order in which they are mentioned.
    pub sources: Vec<Source>,
}

/// One input of an output column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The stream or table.
    pub table: String,
    /// Its column.
    pub column: String,
    /// What it says about a person.
    pub pii: Option<Pii>,
    /// The functions it goes through, outermost first.
    pub through: Vec<String>,
    /// Whether one of them is approved for its tag; true without a tag.
    pub may_leave: bool,
}

impl Lineage {
    /// Follows every output column back.
    pub(super) fn of(shape: &Shape, definition: &StreamDefinition) -> Vec<Self> {
        let trace = Trace { shape, definition };
        let columns = shape.columns.iter().map(|expr| {
            let (column, expr) = match expr {
                Expr::Alias(alias) => (alias.name.clone(), alias.expr.as_ref()),
                Expr::Column(column) => (column.name.clone(), expr),
                other => (other.schema_name().to_string(), other),
            };
            let mut sources = Vec::new();
            trace.follow(expr, &mut Vec::new(), &mut Vec::new(), &mut sources);
            Self { column, expression: shown(expr), sources }
        });
        columns.collect()
    }

    /// What is wrong with letting this column out.
    pub(super) fn problems(&self) -> Vec<String> {
        let leaks = self.sources.iter().filter(|source| !source.may_leave);
        leaks.filter_map(|source| Some((source, source.pii?))).map(|(source, pii)| self.problem(source, pii)).collect()
    }

    fn problem(&self, Source { table, column, .. }: &Source, pii: Pii) -> String {
        let advice = match pii {
            Pii::Identifier => format!("use {PSEUDONYM}({column}), or leave it out"),
            Pii::Location => format!(
                "use {COARSEN}({column}, 0.05), the column by itself and a step of at least {MIN_COARSEN_STEP}, or \
                 leave it out"
            ),
            Pii::Personal => "leave it out; no function makes a personal field fit to leave the edge".to_owned(),
        };
        let output = &self.column;
        format!("column {output} lets out {table}.{column}, which is tagged {:?}: {advice}", pii.name())
    }
}

struct Trace<'a> {
    shape: &'a Shape,
    definition: &'a StreamDefinition,
}

impl Trace<'_> {
    fn follow(&self, expr: &Expr, through: &mut Vec<String>, approved: &mut Vec<Pii>, sources: &mut Vec<Source>) {
        match expr {
            Expr::Column(column) => {
                let Some((table, field)) = self.field(column) else { return };
                let source = Source {
                    table: table.to_owned(),
                    column: field.name.clone(),
                    pii: field.pii,
                    through: through.clone(),
                    may_leave: field.pii.is_none_or(|pii| approved.contains(&pii)),
                };
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
            Expr::ScalarFunction(function) => {
                let approval = match function.name() {
                    PSEUDONYM => Some(Pii::Identifier),
                    COARSEN if hides_position(&function.args) => Some(Pii::Location),
                    _ => None,
                };
                through.push(function.name().to_owned());
                approved.extend(approval);
                for arg in &function.args {
                    self.follow(arg, through, approved, sources);
                }
                through.pop();
                if approval.is_some() {
                    approved.pop();
                }
            }
            other => {
                // Nothing in the visit can fail.
                let _ = other.apply_children(|child| {
                    self.follow(child, through, approved, sources);
                    Ok(TreeNodeRecursion::Continue)
                });
            }
        }
    }

    fn field(&self, column: &datafusion_common::Column) -> Option<(&str, &Field)> {
        let (_, lookup) = self.shape.relations.iter().find(|(alias, _)| is_of(column, alias))?;
        let (table, schema) = match lookup {
            None => (&self.definition.input.table, &self.definition.input.schema),
            Some(lookup) => {
                let table = &self.definition.tables[self.shape.lookups[*lookup].table];
                (&table.table, &table.schema)
            }
        };
        Some((table, schema.field(&column.name)?))
    }
}
