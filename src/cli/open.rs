//! Opening what the options name: devices, models, adapters.

use super::progress;
use super::terminal::{self, Verbosity};
use crate::hub::{self, HubSettings, Watch};
use crate::model::{EMBEDDED, LoadedModel, Precision};
use crate::peft::base_model;
use anyhow::{Context, Result};
use candle_core::Device;
use std::path::{Path, PathBuf};

/// What to do about a file that an option names and that cannot be read.
pub(super) fn unreadable(path: &Path) -> String {
    format!("{}: cannot be read; check the name and the permissions", path.display())
}

/// The hub's settings, with progress of downloads unless `--quiet`.
pub(super) fn hub_settings() -> HubSettings {
    let watched = terminal::verbosity() > Verbosity::Quiet;
    HubSettings { watch: watched.then_some(progress::download as Watch), ..HubSettings::from_env() }
}

/// The Hugging Face folder of a model; `None` for the embedded one.
pub(super) fn files(name: &str, revision: Option<&str>) -> Result<Option<PathBuf>> {
    if name == EMBEDDED {
        return Ok(None);
    }
    let files = hub::resolve(name, revision, &hub_settings()).context("--model")?;
    Ok(Some(files.gguf.unwrap_or(files.folder)))
}

/// The base model of an adapter: the one that is named, else the one that its folder says it was trained on.
pub(super) fn base_of(adapter: &Path, named: Option<&str>) -> Result<String> {
    if let Some(name) = named {
        return Ok(name.to_owned());
    }
    let own = base_model(adapter).with_context(|| format!("--adapter {}", adapter.display()))?;
    own.context("--model is missing: the adapter names no base model")
}

/// A model by hub name, folder, GGUF file or `embedded`.
pub(super) fn model(name: &str, revision: Option<&str>, precision: Precision, device: &Device) -> Result<LoadedModel> {
    if name == EMBEDDED {
        return Ok(LoadedModel::embedded(precision, device)?);
    }
    let files = hub::resolve(name, revision, &hub_settings()).context("--model")?;
    let waiting = progress::waiting(&format!("reading {name}"));
    let loaded = match &files.gguf {
        Some(path) => LoadedModel::from_gguf(path, name, precision, device),
        None => LoadedModel::from_folder(&files.folder, name, precision, device),
    }?;
    let seconds = waiting.seconds();
    drop(waiting);
    detail!(
        "{name}: {} of {} weights in {}, computed in {}, read in {seconds:.2} s from {}",
        loaded.transformer.architecture().family,
        loaded.transformer.architecture().parameter_count(),
        precision.base_name(),
        precision.compute.as_str(),
        files.gguf.as_ref().unwrap_or(&files.folder).display()
    );
    Ok(loaded)
}
