//! Opening what the options name: devices, models, adapters.

use crate::hub::{self, HubSettings};
use crate::model::{EMBEDDED, LoadedModel};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use std::path::Path;

/// What to do about a file that an option names and that cannot be read.
pub(super) fn unreadable(path: &Path) -> String {
    format!("{}: cannot be read; check the name and the permissions", path.display())
}

/// The device that `--device` names.
pub(super) fn device(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        other => bail!("--device {other}: not supported by this build; use auto or cpu"),
    }
}

/// A model by hub name, folder, GGUF file or `embedded`.
pub(super) fn model(name: &str, revision: Option<&str>, dtype: DType, device: &Device) -> Result<LoadedModel> {
    if name == EMBEDDED {
        return Ok(LoadedModel::embedded(dtype, device)?);
    }
    let files = hub::resolve(name, revision, &HubSettings::from_env()).context("--model")?;
    let loaded = match &files.gguf {
        Some(path) => LoadedModel::from_gguf(path, name, dtype, device),
        None => LoadedModel::from_folder(&files.folder, name, dtype, device),
    };
    Ok(loaded?)
}
