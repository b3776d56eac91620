//! `smooth-probe completions`: what shells complete, and the manual's pages, from the same description as `--help`.

use super::Cli;
use crate::persist;
use anyhow::{Context, Result, ensure};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};

/// The program's name, whatever its file is called.
const PROGRAM: &str = "smooth-probe";

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smooth-probe completions bash > ~/.local/share/bash-completion/completions/smooth-probe\n  \
    smooth-probe completions zsh --out ~/.zfunc\n  \
    smooth-probe completions man --out ~/.local/share/man/man1")]
pub(super) struct CompletionsArgs {
    /// The shell, or man for manual pages, one a verb.
    #[arg(value_enum)]
    target: Target,
    /// Write into this folder, under the name by which a shell or man looks for it, in place of stdout. Manual pages are
    /// several files and need it.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
    Man,
}

impl Target {
    fn shell(self) -> Option<Shell> {
        match self {
            Self::Bash => Some(Shell::Bash),
            Self::Elvish => Some(Shell::Elvish),
            Self::Fish => Some(Shell::Fish),
            Self::Powershell => Some(Shell::PowerShell),
            Self::Zsh => Some(Shell::Zsh),
            Self::Man => None,
        }
    }
}

pub(super) fn run(args: &CompletionsArgs, quiet: bool) -> Result<()> {
    let Some(shell) = args.target.shell() else {
        let out = args.out.as_ref().context("--out is missing: manual pages are several files and need a folder")?;
        let count = write_pages(out)?;
        if !quiet {
            note!("wrote {count} pages into {}; read them with man -M, or man -l FILE", out.display());
        }
        return Ok(());
    };
    let script = script(shell);
    let Some(out) = &args.out else {
        say!("{}", script.trim_end());
        return Ok(());
    };
    persist::create_folder(out)?;
    let file = out.join(clap_complete::Generator::file_name(&shell, PROGRAM));
    persist::write_file(&file, script.as_bytes())?;
    if !quiet {
        note!("wrote {}", file.display());
    }
    Ok(())
}

/// What a shell reads.
fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    let script = String::from_utf8_lossy(&script);
    // clap_complete 4.6 writes the hyphen of a program's name for bash in one way where it recognises a verb and in another
    // where the verb's options stand: none of them would be completed.
    match shell {
        Shell::Bash => script.replace("smooth__subcmd__probe", "smooth__probe"),
        _ => script.into_owned(),
    }
}

/// A page for the program and one for each verb; answers how many.
fn write_pages(out: &Path) -> Result<usize> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    persist::create_folder(out)?;
    let verbs = program.get_subcommands().filter(|verb| !verb.is_hide_set());
    let mut count = 0;
    for command in std::iter::once(&program).chain(verbs) {
        let man = Man::new(command.clone()).manual("smooth-probe");
        let mut page = Vec::new();
        man.render(&mut page)?;
        let name = man.get_filename();
        ensure!(!page.is_empty(), "{name}: nothing was made; please report it");
        persist::write_file(&out.join(name), &page)?;
        count += 1;
    }
    Ok(count)
}
