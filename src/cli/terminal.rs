//! How much the user wants to read, and what the terminal can show.

use std::sync::OnceLock;

/// How much is said on stderr; results go to stdout whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    /// Errors alone.
    Quiet,
    /// Progress, and what the user should know.
    Normal,
    /// Where things come from and how long they take, and every cause of an error.
    Verbose,
}

/// Set once, before the verb runs: what says something is far from where options are read.
static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Takes in `--quiet` and `--verbose`.
pub(super) fn set_verbosity(quiet: bool, verbose: bool) {
    let verbosity = match (quiet, verbose) {
        (true, _) => Verbosity::Quiet,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    };
    let _ = VERBOSITY.set(verbosity);
}

/// How much is said.
pub(super) fn verbosity() -> Verbosity {
    VERBOSITY.get().copied().unwrap_or(Verbosity::Normal)
}

/// What characters the terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    /// Block elements among them.
    Unicode,
    /// ASCII alone.
    Ascii,
}

impl Charset {
    /// That of the locale, as the C library reads it from the environment.
    pub(super) fn of_locale() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        // Windows has no such variables, and its terminals show them.
        if cfg!(windows) {
            return Self::Unicode;
        }
        let mut set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(get).filter(|value| !value.is_empty());
        let locale = set.next().unwrap_or_default().to_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Self::Unicode } else { Self::Ascii }
    }
}

/// Columns of the terminal that stdout is; `None` where it is no terminal.
pub(super) fn stdout_columns() -> Option<usize> {
    known(terminal_size::terminal_size_of(std::io::stdout()))
}

/// Columns of the terminal that stderr is.
pub(super) fn stderr_columns() -> Option<usize> {
    known(terminal_size::terminal_size_of(std::io::stderr()))
}

/// A terminal that does not know its size says 0.
fn known(size: Option<(terminal_size::Width, terminal_size::Height)>) -> Option<usize> {
    size.map(|(width, _)| usize::from(width.0)).filter(|width| *width > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_is_ordered() {
        assert!(Verbosity::Quiet < Verbosity::Normal && Verbosity::Normal < Verbosity::Verbose);
    }

    #[cfg(not(windows))]
    #[test]
    fn the_first_variable_that_is_set_is_the_locale() {
        let of = |set: &[(&str, &str)]| {
            Charset::from_variables(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[]), Charset::Ascii);
        assert_eq!(of(&[("LANG", "C")]), Charset::Ascii);
        assert_eq!(of(&[("LANG", "de_DE.UTF-8")]), Charset::Unicode);
        assert_eq!(of(&[("LANG", "de_DE.UTF-8"), ("LC_ALL", "C")]), Charset::Ascii);
        assert_eq!(of(&[("LANG", "C"), ("LC_CTYPE", "C.utf8"), ("LC_ALL", "")]), Charset::Unicode);
        assert_eq!(of(&[("LC_CTYPE", "de_DE.ISO-8859-1"), ("LANG", "C.UTF-8")]), Charset::Ascii);
    }
}
