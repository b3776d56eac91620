//! Corpus means and deviations: made by a first pass, or frozen from an earlier run's `means.safetensors`.

use super::pooled::Pooled;
use crate::measures::{Point, TokenSet};
use crate::persist::{self, PersistError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// The mean and deviation of every dimension at one point for one token set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CorpusMean {
    /// `[d]`.
    pub mean: Vec<f64>,
    /// `[d]`; empty if it was not measured.
    pub deviation: Vec<f64>,
}

/// The means of one run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunMeans(BTreeMap<(Point, TokenSet), CorpusMean>);

/// Why frozen means cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeansError {
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] PersistError),
    /// The file could not be read.
    #[error("--means {path}: cannot be read: {source}; check the name and the permissions")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content is not a file of means.
    #[error("--means {path}: {reason}; give the means.safetensors of an earlier `similarity` run")]
    Content {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A run has no means in the file.
    #[error(
        "--means {path}: holds {missing} of the run {run} for no token set; it has the runs {runs}: name the runs and \
         choose sites and layers as they were when it was written"
    )]
    Missing {
        /// The file.
        path: String,
        /// The run.
        run: String,
        /// The point.
        missing: String,
        /// What the file has.
        runs: String,
    },
}

impl RunMeans {
    /// The means of what a first pass pooled; `deviations` if Σx² was summed.
    #[must_use]
    pub fn of(points: &[Point], pooled: &[[Pooled; 3]], deviations: bool) -> Self {
        let mut means = BTreeMap::new();
        for (point, sets) in points.iter().zip(pooled) {
            for (set, pooled) in TokenSet::ALL.into_iter().zip(sets) {
                let Some(moments) = &pooled.moments else { continue };
                let Some(mean) = moments.mean() else { continue };
                let deviation = if deviations { moments.deviation().unwrap_or_default() } else { Vec::new() };
                means.insert((*point, set), CorpusMean { mean, deviation });
            }
        }
        Self(means)
    }

    /// The mean at a point for a token set; `None` where no token entered.
    #[must_use]
    pub fn get(&self, point: Point, set: TokenSet) -> Option<&CorpusMean> {
        self.0.get(&(point, set))
    }
}

/// The means of several runs by their names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MeansFile {
    runs: BTreeMap<String, RunMeans>,
}

impl MeansFile {
    /// Adds a run.
    pub fn insert(&mut self, run: &str, means: RunMeans) {
        self.runs.insert(run.to_owned(), means);
    }

    /// The means of `run`, if it has any.
    #[must_use]
    pub fn get(&self, run: &str) -> Option<&RunMeans> {
        self.runs.get(run)
    }

    /// Whether no run has a mean.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.values().all(|means| means.0.is_empty())
    }

    /// The means of `run`, of which every point must have some, of this width.
    ///
    /// # Errors
    /// The file, named `path`, has no such run or lacks a point, or holds another width.
    pub fn run(&self, path: &Path, run: &str, points: &[Point], width: usize) -> Result<RunMeans, MeansError> {
        let file = path.display().to_string();
        let names = || self.runs.keys().cloned().collect::<Vec<_>>().join(", ");
        let missing =
            |missing: String| MeansError::Missing { path: file.clone(), run: run.to_owned(), missing, runs: names() };
        let means = self.runs.get(run).ok_or_else(|| missing("nothing".to_owned()))?;
        for &point in points {
            if TokenSet::ALL.iter().all(|&set| means.get(point, set).is_none()) {
                return Err(missing(format!("{} layer {}", point.site, point.layer)));
            }
        }
        let other = means.0.values().find(|m| m.mean.len() != width);
        match other {
            Some(other) => {
                let reason = format!("its means are {} wide, the model's states {width}", other.mean.len());
                Err(MeansError::Content { path: file, reason })
            }
            None => Ok(means.clone()),
        }
    }

    /// Writes the file: f64 tensors `RUN/SITE/LAYER/TOKENS/mean` and `…/deviation`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), MeansError> {
        let mut tensors: Vec<(String, Vec<u8>, usize)> = Vec::new();
        for (run, means) in &self.runs {
            for ((point, set), mean) in &means.0 {
                for (kind, values) in [("mean", &mean.mean), ("deviation", &mean.deviation)] {
                    if !values.is_empty() {
                        let name = format!("{run}/{}/{}/{set}/{kind}", point.site, point.layer);
                        tensors.push((name, values.iter().flat_map(|v| v.to_le_bytes()).collect(), values.len()));
                    }
                }
            }
        }
        let content = |reason: String| MeansError::Content { path: path.display().to_string(), reason };
        let views = tensors.iter().map(|(name, bytes, width)| {
            TensorView::new(Dtype::F64, vec![*width], bytes).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(|e| content(e.to_string()))?;
        let bytes = safetensors::serialize(views, None).map_err(|e| content(e.to_string()))?;
        Ok(persist::write_file(path, &bytes)?)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or is not one that [`Self::write`] wrote.
    pub fn read(path: &Path) -> Result<Self, MeansError> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| MeansError::Read { path: file.clone(), source })?;
        let content = |reason: String| MeansError::Content { path: file.clone(), reason };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| content(e.to_string()))?;
        let mut found = Self::default();
        for (name, view) in tensors.iter() {
            let strange = || content(format!("\"{name}\" names no mean"));
            // From the right: a run's name may hold a slash.
            let mut parts = name.rsplitn(5, '/');
            let (kind, set) = (parts.next(), parts.next());
            let set = TokenSet::ALL.into_iter().find(|s| set == Some(s.to_string().as_str())).ok_or_else(strange)?;
            let layer = parts.next().and_then(|l| l.parse().ok()).ok_or_else(strange)?;
            let site = parts.next().and_then(|s| s.parse().ok()).ok_or_else(strange)?;
            let run = parts.next().ok_or_else(strange)?;
            if view.dtype() != Dtype::F64 || view.shape().len() != 1 {
                return Err(content(format!("\"{name}\" is no list of f64")));
            }
            let values: Vec<f64> = view.data().as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(content(format!("\"{name}\" holds a number that is not finite")));
            }
            let means = found.runs.entry(run.to_owned()).or_default();
            let mean = means.0.entry((Point { site, layer }, set)).or_default();
            match kind {
                Some("mean") => mean.mean = values,
                Some("deviation") => mean.deviation = values,
                _ => return Err(strange()),
            }
        }
        let uneven =
            |m: &CorpusMean| m.mean.is_empty() || (!m.deviation.is_empty() && m.deviation.len() != m.mean.len());
        if found.runs.values().any(|run| run.0.values().any(uneven)) {
            return Err(content("a mean and its deviation are not equally wide".to_owned()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Site;

    #[test]
    fn means_read_back_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("means.safetensors");
        let point = Point { site: Site::Block, layer: 2 };
        let mut run = RunMeans::default();
        let mean = CorpusMean { mean: vec![0.1, -2.0], deviation: vec![1.0, 0.0] };
        run.0.insert((point, TokenSet::NoFirst), mean.clone());
        let mut file = MeansFile::default();
        file.insert("a/b", run);
        file.write(&path).unwrap();
        let read = MeansFile::read(&path).unwrap();
        assert_eq!(read, file);
        assert_eq!(read.run(&path, "a/b", &[point], 2).unwrap().get(point, TokenSet::NoFirst), Some(&mean));
        let error = |run: &str, point, width| read.run(&path, run, &[point], width).unwrap_err().to_string();
        assert!(error("c", point, 2).contains("it has the runs a/b"));
        assert!(error("a/b", Point { site: Site::Block, layer: 3 }, 2).contains("block layer 3"));
        assert!(error("a/b", point, 3).contains("are 2 wide, the model's states 3"));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        assert!(MeansFile::read(&path).unwrap_err().to_string().contains("means.safetensors of an earlier"));
        let bytes = 1.0f64.to_le_bytes();
        let view = TensorView::new(Dtype::F64, vec![1], &bytes).unwrap();
        std::fs::write(&path, safetensors::serialize(vec![("weight", view)], None).unwrap()).unwrap();
        assert!(MeansFile::read(&path).unwrap_err().to_string().contains("\"weight\" names no mean"));
    }
}
