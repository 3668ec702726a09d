//! The plan as DataFusion made it, and what of it we run: projection ◄ filter ◄ look-ups ◄ stream.
//!
//! Here expressions are judged: whether they aggregate, hold a subquery or can fail. Clauses are judged in `statement`.

use arrow::datatypes::DataType;
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, DFSchemaRef, JoinType};
use datafusion_expr::utils::split_conjunction;
use datafusion_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator};

use super::functions::{COARSEN, coarsen_step};
use super::statement::refusal;
use super::words::shown;
use contract::StreamDefinition;

/// What a plan comes down to.
#[derive(Debug)]
pub(super) struct Shape {
    /// The output columns.
    pub(super) columns: Vec<Expr>,
    /// `WHERE`.
    pub(super) filter: Option<Expr>,
    /// The look-ups, in order.
    pub(super) lookups: Vec<Lookup>,
    /// What columns and filter are expressions over: the stream's columns, then those of each look-up.
    pub(super) schema: DFSchemaRef,
    /// Which alias is which: `None` is the stream, otherwise a look-up.
    pub(super) relations: Vec<(String, Option<usize>)>,
}

/// One look-up: by a column of the stream, in a table's key.
#[derive(Debug)]
pub(super) struct Lookup {
    /// Which table of the definition.
    pub(super) table: usize,
    /// Which column of the stream has the key.
    pub(super) stream_column: usize,
    /// Whether records without a row are kept, with nulls.
    pub(super) outer: bool,
}

impl Shape {
    /// Takes the plan apart, or says what it has that we can't run.
    pub(super) fn of(plan: &LogicalPlan, definition: &StreamDefinition) -> Result<Self, String> {
        let LogicalPlan::Projection(projection) = plan else { return Err(unexpected(plan)) };
        let (filter, from) = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) => (Some(filter.predicate.clone()), &filter.input),
            _ => (None, &projection.input),
        };
        let mut shape = Self {
            columns: projection.expr.clone(),
            filter,
            lookups: Vec::new(),
            schema: from.schema().clone(),
            relations: Vec::new(),
        };
        shape.add_from(from, definition)?;
        for expr in shape.columns.iter().chain(&shape.filter) {
            cannot_fail(expr, &shape.schema)?;
        }
        Ok(shape)
    }

    fn add_from(&mut self, plan: &LogicalPlan, definition: &StreamDefinition) -> Result<(), String> {
        let LogicalPlan::Join(join) = plan else {
            let (alias, table) = relation(plan)?;
            if table != definition.input.table {
                let wanted = &definition.input.table;
                return Err(format!("FROM must begin with the stream {wanted}, not {table}"));
            }
            self.relations.push((alias, None));
            return Ok(());
        };
        self.add_from(&join.left, definition)?;
        let (alias, name) = relation(&join.right)?;
        let table = definition.tables.iter().position(|table| table.table == name).ok_or_else(|| {
            format!("{name} is not one of this stream's tables: a stream can only be joined with a table")
        })?;
        let outer = match join.join_type {
            JoinType::Left => true,
            JoinType::Inner => false,
            other => return Err(refusal(&format!("{other} JOIN"))),
        };
        let key = &definition.tables[table];
        let key_name = &key.schema.fields[key.key].name;
        let stream = self.relations[0].0.clone();
        let wanted =
            || format!("{name} must be joined ON {stream}.… = {alias}.{key_name}, its key, and on nothing else");
        let mut pairs: Vec<(Expr, Expr)> = join.on.clone();
        for condition in join.filter.iter().flat_map(split_conjunction) {
            match condition {
                Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                    pairs.push((left.as_ref().clone(), right.as_ref().clone()));
                }
                _ => return Err(wanted()),
            }
        }
        let [(Expr::Column(a), Expr::Column(b))] = pairs.as_slice() else { return Err(wanted()) };
        let is_key = |c: &Column| is_of(c, &alias) && c.name == *key_name;
        let (from_stream, _) = match (is_key(a), is_key(b)) {
            (false, true) => (a, b),
            (true, false) => (b, a),
            _ => return Err(wanted()),
        };
        let input = &definition.input.schema;
        let stream_column = input.index_of(&from_stream.name).filter(|_| is_of(from_stream, &stream));
        let stream_column = stream_column.ok_or_else(wanted)?;
        self.relations.push((alias, Some(self.lookups.len())));
        self.lookups.push(Lookup { table, stream_column, outer });
        Ok(())
    }
}

pub(super) fn is_of(column: &Column, alias: &str) -> bool {
    column.relation.as_ref().is_some_and(|relation| relation.table() == alias)
}

/// Alias and name of a table in FROM.
fn relation(plan: &LogicalPlan) -> Result<(String, String), String> {
    match plan {
        LogicalPlan::TableScan(scan) if scan.filters.is_empty() && scan.fetch.is_none() => {
            let name = scan.table_name.table().to_owned();
            Ok((name.clone(), name))
        }
        LogicalPlan::SubqueryAlias(alias) => match alias.input.as_ref() {
            scan @ LogicalPlan::TableScan(_) => Ok((alias.alias.table().to_owned(), relation(scan)?.1)),
            _ => Err(refusal("a subquery in FROM")),
        },
        other => Err(unexpected(other)),
    }
}

/// Names a step that an expression has brought in; clauses were judged before, as text.
fn unexpected(plan: &LogicalPlan) -> String {
    let what = match plan {
        LogicalPlan::Aggregate(_) => "an aggregate",
        LogicalPlan::Window(_) => "a window function",
        LogicalPlan::Subquery(_) => "a subquery",
        LogicalPlan::Unnest(_) => "UNNEST",
        other => return refusal(&format!("the step {:?}", other.display().to_string())),
    };
    refusal(what)
}

/// Refuses what can fail on some record: then the whole batch would fail, again and again.
fn cannot_fail(expr: &Expr, schema: &DFSchemaRef) -> Result<(), String> {
    let mut problem = None;
    let visited = expr.apply(|expr| {
        problem = problem_of(expr, schema);
        Ok(if problem.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match (problem, visited) {
        (Some(problem), _) => Err(problem),
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) => Err(error.to_string()),
    }
}

fn problem_of(expr: &Expr, schema: &DFSchemaRef) -> Option<String> {
    let type_of = |expr: &Expr| expr.get_type(schema.as_ref()).unwrap_or(DataType::Null);
    match expr {
        Expr::Alias(_) | Expr::Column(_) | Expr::Literal(..) => None,
        Expr::Not(_) | Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::IsTrue(_) | Expr::IsFalse(_) => None,
        Expr::IsUnknown(_) | Expr::IsNotTrue(_) | Expr::IsNotFalse(_) | Expr::IsNotUnknown(_) => None,
        Expr::Negative(_) | Expr::Between(_) | Expr::InList(_) | Expr::Case(_) | Expr::TryCast(_) => None,
        Expr::Like(like) if matches!(*like.pattern, Expr::Literal(..)) => None,
        Expr::Like(_) => Some(format!("{}: the pattern of LIKE must be a text in single quotes", shown(expr))),
        Expr::ScalarFunction(f) if f.name() == COARSEN && coarsen_step(&f.args).is_none() => {
            Some(format!("{}: the step of coarsen must be a number above 0", shown(expr)))
        }
        // Only those of functions.rs get this far.
        Expr::ScalarFunction(_) => None,
        Expr::Cast(cast) => {
            let (from, to) = (type_of(&cast.expr), cast.field.data_type());
            let literal = matches!(*cast.expr, Expr::Literal(..));
            (!literal && cast_can_fail(&from, to))
                .then(|| format!("{} can fail on a record: use TRY_CAST, which gives null instead", shown(expr)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => None,
            Operator::And | Operator::Or | Operator::IsDistinctFrom | Operator::IsNotDistinctFrom => None,
            Operator::StringConcat => None,
            Operator::Plus | Operator::Minus | Operator::Multiply
                if type_of(left).is_numeric() && type_of(right).is_numeric() =>
            {
                None
            }
            Operator::Divide | Operator::Modulo if type_of(left).is_floating() && type_of(right).is_floating() => None,
            Operator::Divide | Operator::Modulo if is_positive(right) && type_of(left).is_integer() => None,
            Operator::Divide | Operator::Modulo => {
                let expr = shown(expr);
                Some(format!("{expr} can fail on a record: divide by a number above 0, or CAST both sides to DOUBLE"))
            }
            other => Some(refusal(&format!("the operator {other}"))),
        },
        Expr::AggregateFunction(_) => Some(refusal("an aggregate")),
        Expr::WindowFunction(_) => Some(refusal("a window function")),
        Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_) => {
            Some(refusal("a subquery"))
        }
        other => Some(refusal(&format!("the expression {}", shown(other)))),
    }
}

fn is_positive(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => !value.is_null() && value.to_string().parse::<i64>().is_ok_and(|value| value > 0),
        Expr::Cast(cast) => is_positive(&cast.expr),
        _ => false,
    }
}

fn cast_can_fail(from: &DataType, to: &DataType) -> bool {
    let widens = match (from, to) {
        (from, to) if from == to => true,
        (from, to) if from.is_numeric() && to.is_floating() => true,
        (from, DataType::Utf8) if from.is_numeric() || *from == DataType::Boolean => true,
        (DataType::Null, _) | (DataType::Boolean, DataType::Int32 | DataType::Int64) => true,
        (from, to) if from.is_signed_integer() && to.is_signed_integer() => {
            from.primitive_width() <= to.primitive_width()
        }
        (DataType::Timestamp(..), DataType::Int64) => true,
        _ => false,
    };
    !widens
}

/// The same expressions over fewer columns: only those that they use, in the order of `schema`.
pub(super) fn used_columns(exprs: &[&Expr], schema: &DFSchemaRef) -> Result<Vec<usize>, String> {
    let mut used = Vec::new();
    for column in exprs.iter().flat_map(|expr| expr.column_refs()) {
        used.push(schema.index_of_column(column).map_err(|e| e.to_string())?);
    }
    used.sort_unstable();
    used.dedup();
    Ok(used)
}
