//! The functions that a statement may use: ours, which make personal data fit to leave, and DataFusion's that can't
//! fail on any value (its `sqrt` refuses a whole batch for one negative number, so it is not among them).

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion_common::{Result, ScalarValue, exec_err};
use datafusion_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use telemetry::pseudonym::PseudonymKey;

/// The smallest step of `coarsen`, in degrees: about a kilometre. A finer one would not hide where somebody lives.
pub const MIN_COARSEN_STEP: f64 = 0.01;

pub(super) const PSEUDONYM: &str = "pseudonym";
pub(super) const COARSEN: &str = "coarsen";

/// All functions, by name.
pub(super) fn all(key: &PseudonymKey) -> Vec<Arc<ScalarUDF>> {
    use datafusion_functions::{core, math, string};
    vec![
        Arc::new(ScalarUDF::new_from_impl(Pseudonym::new(key.clone()))),
        Arc::new(ScalarUDF::new_from_impl(Coarsen::new())),
        core::coalesce(),
        core::greatest(),
        core::least(),
        core::nullif(),
        math::ceil(),
        math::floor(),
        math::round(),
        string::lower(),
        string::upper(),
    ]
}

/// The step of `coarsen(…, step)`: a number above 0.
pub(super) fn coarsen_step(args: &[Expr]) -> Option<f64> {
    number(args.get(1)?).filter(|step| *step > 0.0 && step.is_finite())
}

/// Whether these arguments of `coarsen` hide a position: the column stands by itself, so that nobody scales it up
/// first, and the step is large enough.
pub(super) fn hides_position(args: &[Expr]) -> bool {
    matches!(args.first(), Some(Expr::Column(_))) && coarsen_step(args).is_some_and(|step| step >= MIN_COARSEN_STEP)
}

fn number(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::Literal(value, _) => match value.cast_to(&DataType::Float64) {
            Ok(ScalarValue::Float64(value)) => value,
            _ => None,
        },
        Expr::Cast(cast) => number(&cast.expr),
        _ => None,
    }
}

/// `pseudonym(text)`: the same for the same text, and no way back without the site's key.
#[derive(Debug)]
struct Pseudonym {
    key: PseudonymKey,
    signature: Signature,
}

impl Pseudonym {
    fn new(key: PseudonymKey) -> Self {
        Self { key, signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable) }
    }
}

// One process has one key.
impl PartialEq for Pseudonym {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature
    }
}

impl Eq for Pseudonym {}

impl Hash for Pseudonym {
    fn hash<H: Hasher>(&self, state: &mut H) {
        PSEUDONYM.hash(state);
    }
}

impl ScalarUDFImpl for Pseudonym {
    fn name(&self) -> &str {
        PSEUDONYM
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(null_if_any_is(PSEUDONYM, DataType::Utf8, &args))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text] = ColumnarValue::values_to_arrays(&args.args)?.try_into().map_err(|_| arity(PSEUDONYM))?;
        let text = text.as_string::<i32>();
        let mut out = StringBuilder::with_capacity(text.len(), 32 * text.len());
        let mut buffer = [0; 32];
        for value in text {
            out.append_option(value.map(|value| self.key.write(value, &mut buffer)));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}

/// `coarsen(x, step)`: the nearest multiple of step.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Coarsen {
    signature: Signature,
}

impl Coarsen {
    fn new() -> Self {
        let types = vec![DataType::Float64, DataType::Float64];
        Self { signature: Signature::exact(types, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Coarsen {
    fn name(&self) -> &str {
        COARSEN
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(null_if_any_is(COARSEN, DataType::Float64, &args))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [x, ColumnarValue::Scalar(ScalarValue::Float64(Some(step)))] = args.args.as_slice() else {
            return exec_err!("coarsen needs a number as its step");
        };
        let x = x.to_array(args.number_rows)?;
        let coarse: ArrayRef = Arc::new(x.as_primitive::<Float64Type>().unary::<_, Float64Type>(|x| coarsen(x, *step)));
        Ok(ColumnarValue::Array(coarse))
    }
}

/// The nearest multiple of `step`. Multiples are counted in steps per unit where that is a whole number, since 0.05
/// has no exact double but 20 has: 52.35, not 52.349999999999994.
pub(super) fn coarsen(x: f64, step: f64) -> f64 {
    let per_unit = (1.0 / step).round();
    let coarse = if (per_unit * step - 1.0).abs() < 1e-9 {
        (x * per_unit).round() / per_unit
    } else {
        (x / step).round() * step
    };
    coarse + 0.0 // not -0.0
}

fn null_if_any_is(name: &str, data_type: DataType, args: &ReturnFieldArgs) -> FieldRef {
    let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
    Arc::new(Field::new(name, data_type, nullable))
}

fn arity(name: &str) -> datafusion_common::DataFusionError {
    datafusion_common::DataFusionError::Execution(format!("{name} has the wrong number of arguments"))
}
