//! `man`: the manual pages, made of the same text as `--help`.

use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::context::{Context, Failure};

/// Writes the manual: the main page to stdout, or with --dir a page per command.
///
/// As in: dprof-cli man | man -l -
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write dprof-cli.1, dprof-cli-trace.1 and so on into; it must exist
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs it.
#[expect(clippy::unused_async, reason = "all commands are called alike")]
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let Some(dir) = args.dir else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page)?;
        context.out.write_all(&page)?;
        return Ok(());
    };
    let mut pages = Vec::new();
    add_pages("dprof-cli", &command, &mut pages);
    for (name, command) in &pages {
        let path = dir.join(format!("{name}.1"));
        let mut page = Vec::new();
        Man::new((*command).clone()).render(&mut page)?;
        std::fs::write(&path, page)
            .map_err(|error| Failure::Error(format!("cannot write {}: {error}", path.display())))?;
    }
    context.say(&format!("wrote {} pages into {}", pages.len(), dir.display()));
    Ok(())
}

/// A page for the command and for each below it. What clap adds by itself (`help`) needs none.
fn add_pages<'a>(name: &str, command: &'a Command, pages: &mut Vec<(String, &'a Command)>) {
    pages.push((name.to_owned(), command));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        add_pages(&format!("{name}-{}", below.get_name()), below, pages);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, run};

    #[test]
    fn every_command_has_a_page() {
        let (_, out, _) = run(Memory::default(), 80, "man");
        assert!(out.contains(".TH dprof-cli 1") && out.contains("Exit codes"), "{}", &out[..200]);
        let dir = tempfile::tempdir().expect("a folder");
        let (result, out, words) = run(Memory::default(), 80, &format!("man --dir {}", dir.path().display()));
        assert!(result.is_ok());
        assert_eq!(out, "");
        assert!(words.starts_with("wrote ") && words.contains(" pages into "), "{words}");
        let page = std::fs::read_to_string(dir.path().join("dprof-cli-slowest-spans.1")).expect("written");
        assert!(page.contains("min\\-duration") && page.contains(".TH dprof-cli-slowest-spans 1"), "{page}");
        let page = std::fs::read_to_string(dir.path().join("dprof-cli-store-init.1")).expect("written");
        assert!(page.contains(".TH dprof-cli-store-init 1"), "{page}");
        assert!(
            !dir.path().join("dprof-cli-help.1").exists()
                && !dir.path().join("dprof-cli-store-help.1").exists()
        );
        let (result, ..) = run(Memory::default(), 80, "man --dir /nonexistent");
        assert!(result.expect_err("no folder").to_string().starts_with("cannot write /nonexistent/"));
    }
}
