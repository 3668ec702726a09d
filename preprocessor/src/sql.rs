//! SQL is the configuration of the preprocessor: from a statement to something that runs.
//!
//! ```text
//!  CREATE STREAM … AS SELECT … FROM … WHERE …
//!    │ statement   which clauses there are; anything but projection, filter and look-up is refused by name
//!    ▼
//!  DataFusion: names, types, coercion, constant folding
//!    │ shape       the plan must be projection ◄ filter ◄ look-ups ◄ stream, and no expression may fail on a record
//!    │ lineage     every output column back to its inputs: what is tagged personal must not come out
//!    │ output      names, types and nulls as the declared Avro schema has them
//!    ▼
//!  Query::run      batch in, batch out, in order; synchronous, nothing remembered between batches
//! ```

mod functions;
mod lineage;
mod lookup;
mod output;
mod query;
mod shape;
mod statement;
mod words;

#[cfg(test)]
mod tests;

pub use functions::MIN_COARSEN_STEP;
pub use lineage::{Lineage, Source};
pub use lookup::LookupTable;
pub use query::{Query, Selected};
pub(crate) use statement::LINE;
