//! A statement that runs: look up, filter, project; one batch at a time, in order.
//!
//! ```text
//!  stream batch ─► columns used ─┬─► + look-ups ─► WHERE ─► expressions ─► output batch
//!                  tables ───────┘                   └─ rows left out are counted, not lost sight of
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{and, cast, filter, filter_record_batch, is_not_null};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DFSchema, DataFusionError, TableReference, plan_err};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::logical_plan::builder::LogicalTableSource;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::{AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF};
use datafusion_optimizer::simplify_expressions::SimplifyExpressions;
use datafusion_optimizer::{Analyzer, Optimizer, OptimizerContext};
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_sql::planner::{ContextProvider, ParserOptions, SqlToRel};
use telemetry::pseudonym::PseudonymKey;

use super::functions::{self, PSEUDONYM};
use super::lineage::Lineage;
use super::lookup::LookupTable;
use super::output;
use super::shape::{Lookup, Shape, is_of, used_columns};
use super::statement;
use super::words::{in_words_of_a_schema, shown};
use contract::StreamDefinition;

/// A planned statement.
#[derive(Debug)]
pub struct Query {
    /// Which columns of the stream are used.
    stream_columns: Vec<usize>,
    lookups: Vec<Lookup>,
    /// Which columns of each look-up's table are used.
    lookup_columns: Vec<Vec<usize>>,
    /// The columns that the expressions are over.
    row_schema: SchemaRef,
    filter: Option<Arc<dyn PhysicalExpr>>,
    columns: Vec<Arc<dyn PhysicalExpr>>,
    output: SchemaRef,
    key_column: usize,
    lineage: Vec<Lineage>,
    /// WHERE, as the statement has it.
    filter_text: Option<String>,
}

/// What a query made of a batch.
#[derive(Debug)]
pub struct Selected {
    /// The output rows.
    pub batch: RecordBatch,
    /// For each the row of the input that it came from.
    pub rows: UInt32Array,
}

impl Query {
    /// Plans the statement of a definition; everything that is wrong with it is returned.
    pub fn plan(definition: &StreamDefinition, key: &PseudonymKey) -> Result<Self, Vec<String>> {
        let one = |problem| vec![problem];
        let statement = statement::parse(&definition.name, &definition.sql).map_err(one)?;
        let catalogue = Catalogue::new(definition, key);
        let options = ParserOptions::default().with_map_string_types_to_utf8view(false);
        let plan = SqlToRel::new_with_options(&catalogue, options)
            .sql_statement_to_plan(statement)
            .and_then(|plan| Analyzer::new().execute_and_check(plan, &catalogue.options, |_, _| {}))
            .map_err(|e| one(catalogue.explain(&e)))?;
        // Lineage and safety are judged before anything is simplified away.
        let shape = Shape::of(&plan, definition).map_err(one)?;
        let lineage = Lineage::of(&shape, definition);
        let filter_text = shape.filter.as_ref().map(shown);
        let mut problems: Vec<_> = lineage.iter().flat_map(Lineage::problems).collect();
        let assigned = output::assign(&shape, &lineage, &definition.output).map_err(|more| problems.extend(more));
        let key_column = key_column(&shape, definition).map_err(|problem| problems.push(problem));
        let (Ok(assigned), Ok(key_column)) = (assigned, key_column) else { return Err(problems) };
        if !problems.is_empty() {
            return Err(problems);
        }
        let simplified = simplify(plan).map_err(|e| one(catalogue.explain(&e)))?;
        let shape = Shape::of(&simplified, definition).map_err(one)?;
        let key_column = assigned.iter().position(|at| *at == key_column).expect("every column is assigned");
        let compiled = Self::compile(shape, &assigned, definition, lineage, key_column);
        compiled.map(|query| Self { filter_text, ..query }).map_err(|e| one(catalogue.explain(&e)))
    }

    fn compile(
        shape: Shape,
        assigned: &[usize],
        definition: &StreamDefinition,
        lineage: Vec<Lineage>,
        key_column: usize,
    ) -> Result<Self, DataFusionError> {
        let exprs: Vec<&Expr> = assigned.iter().map(|at| &shape.columns[*at]).chain(&shape.filter).collect();
        let used = used_columns(&exprs, &shape.schema).map_err(DataFusionError::Plan)?;
        let fields = used.iter().map(|at| {
            let (relation, field) = shape.schema.qualified_field(*at);
            (relation.cloned(), field.clone())
        });
        let row = DFSchema::new_with_metadata(fields.collect(), HashMap::new())?;
        // The columns of the joined row are those of the stream, then those of each look-up's table.
        let mut end = definition.input.schema.fields.len();
        let stream_columns = used.iter().copied().filter(|at| *at < end).collect();
        let mut lookup_columns = Vec::new();
        for lookup in &shape.lookups {
            let begin = end;
            end += definition.tables[lookup.table].schema.fields.len();
            lookup_columns.push(used.iter().filter(|at| (begin..end).contains(*at)).map(|at| at - begin).collect());
        }
        let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
        let compile = |expr: &Expr| create_physical_expr(expr, &row, &props, &context);
        Ok(Self {
            columns: assigned.iter().map(|at| compile(&shape.columns[*at])).collect::<Result<_, _>>()?,
            filter: shape.filter.as_ref().map(compile).transpose()?,
            stream_columns,
            lookup_columns,
            lookups: shape.lookups,
            row_schema: row.inner().clone(),
            output: definition.output.arrow.clone(),
            key_column,
            lineage,
            filter_text: None,
        })
    }

    /// Where each output column comes from, in the order of the statement.
    pub fn lineage(&self) -> &[Lineage] {
        &self.lineage
    }

    /// The condition of WHERE, if the statement has one.
    pub fn filter(&self) -> Option<&str> {
        self.filter_text.as_deref()
    }

    /// Which output column has the pseudonym of the car, which is the key of the clean records.
    pub fn key_column(&self) -> usize {
        self.key_column
    }

    /// Empty tables, one per look-up, for [`Query::run`]. Each keeps what this statement uses.
    pub fn tables(&self, definition: &StreamDefinition) -> Vec<LookupTable> {
        let schema = |lookup: &Lookup| &definition.tables[lookup.table].schema.arrow;
        let pairs = self.lookups.iter().zip(&self.lookup_columns);
        pairs.map(|(lookup, columns)| LookupTable::new(schema(lookup), columns.clone())).collect()
    }

    /// For each look-up the table of the definition that it looks into.
    pub fn looked_up(&self) -> impl Iterator<Item = usize> {
        self.lookups.iter().map(|lookup| lookup.table)
    }

    /// Runs the statement over a batch of the input schema. The output keeps its order.
    ///
    /// An error is a mistake in this program: statements whose expressions can fail on a record are not planned.
    pub fn run(&self, batch: &RecordBatch, tables: &mut [LookupTable]) -> anyhow::Result<Selected> {
        let rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> = self.stream_columns.iter().map(|at| batch.column(*at).clone()).collect();
        let mut keep: Option<BooleanArray> = None;
        for (lookup, table) in self.lookups.iter().zip(tables) {
            let found = table.find(batch.column(lookup.stream_column).as_string());
            columns.extend(table.gather(&found)?);
            if !lookup.outer {
                keep = Some(both(keep, is_not_null(&found)?)?);
            }
        }
        let mut origins = UInt32Array::from_iter_values(0..rows as u32);
        // Rows without a match go first: after them the columns of an inner look-up have no nulls.
        if let Some(keep) = keep.filter(|keep| keep.true_count() < rows) {
            columns = columns.iter().map(|column| filter(column, &keep)).collect::<Result<_, _>>()?;
            origins = filter(&origins, &keep)?.as_primitive().clone();
        }
        let options = RecordBatchOptions::new().with_row_count(Some(origins.len()));
        let mut row = RecordBatch::try_new_with_options(self.row_schema.clone(), columns, &options)?;
        if let Some(predicate) = &self.filter {
            let keep = predicate.evaluate(&row).context("WHERE")?.into_array(row.num_rows())?;
            let keep = keep.as_boolean();
            // Null is not true: the filter kernels leave those rows out, too.
            if keep.true_count() < row.num_rows() {
                row = filter_record_batch(&row, keep)?;
                origins = filter(&origins, keep)?.as_primitive().clone();
            }
        }
        let evaluate = |(expr, field): (&Arc<dyn PhysicalExpr>, &Arc<arrow::datatypes::Field>)| {
            let column = expr.evaluate(&row)?.into_array(row.num_rows())?;
            Ok(if column.data_type() == field.data_type() { column } else { cast(&column, field.data_type())? })
        };
        let columns = self.columns.iter().zip(self.output.fields()).map(evaluate);
        let columns = columns.collect::<Result<_, DataFusionError>>().context("SELECT")?;
        Ok(Selected { batch: RecordBatch::try_new(self.output.clone(), columns)?, rows: origins })
    }
}

fn both(a: Option<BooleanArray>, b: BooleanArray) -> Result<BooleanArray, arrow::error::ArrowError> {
    match a {
        Some(a) => and(&a, &b),
        None => Ok(b),
    }
}

/// Folds constants, and turns functions such as coalesce into what can be executed.
fn simplify(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let rules = vec![Arc::new(SimplifyExpressions::new()) as _];
    Optimizer::with_rules(rules).optimize(plan, &OptimizerContext::new(), |_, _| {})
}

/// The one column that is `pseudonym(key of the input)` and nothing else: its place in the statement.
fn key_column(shape: &Shape, definition: &StreamDefinition) -> Result<usize, String> {
    let key = &definition.input.schema.fields[definition.identity[0]].name;
    let is_key = |expr: &Expr| match expr.clone().unalias() {
        Expr::ScalarFunction(f) if f.name() == PSEUDONYM => match f.args.as_slice() {
            [Expr::Column(column)] => column.name == *key && is_of(column, &shape.relations[0].0),
            _ => false,
        },
        _ => false,
    };
    let mut keys = shape.columns.iter().enumerate().filter(|(_, expr)| is_key(expr)).map(|(at, _)| at);
    match (keys.next(), keys.next()) {
        (Some(at), None) => Ok(at),
        _ => Err(format!("exactly one column must be {PSEUDONYM}({key}): it is the key of the clean records")),
    }
}

/// What the SQL may name: the stream, its tables, and the functions.
struct Catalogue {
    sql: String,
    tables: HashMap<String, Arc<dyn TableSource>>,
    functions: HashMap<String, Arc<ScalarUDF>>,
    options: ConfigOptions,
}

impl Catalogue {
    fn new(definition: &StreamDefinition, key: &PseudonymKey) -> Self {
        let source = |schema: &SchemaRef| Arc::new(LogicalTableSource::new(schema.clone())) as Arc<dyn TableSource>;
        let mut tables = HashMap::from([(definition.input.table.clone(), source(&definition.input.schema.arrow))]);
        tables.extend(definition.tables.iter().map(|table| (table.table.clone(), source(&table.schema.arrow))));
        let functions = functions::all(key).into_iter().map(|f| (f.name().to_owned(), f)).collect();
        let sql = definition.sql.clone();
        Self { sql, tables, functions, options: ConfigOptions::default() }
    }

    /// DataFusion's message, with what it doesn't know about us.
    fn explain(&self, error: &DataFusionError) -> String {
        // The cause alone: around it is which step of the planner failed.
        let message = error.find_root().message().into_owned();
        let message = message.split("\n\nbacktrace: ").next().unwrap_or_default();
        let message = in_words_of_a_schema(&message.replace(".\n", ". ").replace('\n', " "));
        // The second is what it says of any OVER (…) where no window function exists.
        if message.contains("Invalid function") || message.contains("No functions registered") {
            let message = message.split(". ").next().unwrap_or_default();
            let known = self.udf_names().join(", ");
            return format!(
                "{message}. The functions of a stream are {known}; aggregates and window functions are not \
                possible, since each record stands for itself"
            );
        }
        let quoted = |name: &str| self.sql.contains(&format!("\"{name}\""));
        let unknown = message.strip_prefix("No field named ").and_then(|rest| rest.split(". ").next());
        match unknown.map(|name| name.trim_matches(['"', '.'])) {
            Some(name) if quoted(name) => {
                format!("there is no column {name}: text is written in single quotes, '{name}'")
            }
            _ => message,
        }
    }
}

impl ContextProvider for Catalogue {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>, DataFusionError> {
        match self.tables.get(name.table()) {
            Some(table) if name.schema().is_none() => Ok(table.clone()),
            _ => {
                let mut known: Vec<_> = self.tables.keys().map(String::as_str).collect();
                known.sort_unstable();
                plan_err!("there is no table {name}: this stream has {}", known.join(", "))
            }
        }
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.get(name).cloned()
    }

    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, _: &str) -> Option<Arc<AggregateUDF>> {
        None
    }

    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.functions.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}
