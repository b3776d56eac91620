//! Missing values in TOML, which has none: `nan` stands for them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[expect(clippy::ptr_arg, reason = "serde calls it with the field's own type")]
pub(super) fn serialize<S: Serializer>(values: &Vec<Option<f64>>, serializer: S) -> Result<S::Ok, S::Error> {
    let plain: Vec<f64> = values.iter().map(|value| value.unwrap_or(f64::NAN)).collect();
    plain.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Option<f64>>, D::Error> {
    let plain = Vec::<f64>::deserialize(deserializer)?;
    Ok(plain.into_iter().map(|value| (!value.is_nan()).then_some(value)).collect())
}
