//! `completions`: what a shell needs to complete commands and options.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::context::{Context, Failure};

/// Writes completions for a shell: bash, elvish, fish, powershell or zsh.
///
/// As in: dprof-cli completions bash > /etc/bash_completion.d/dprof-cli
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_enum, value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

/// Runs it.
#[expect(clippy::unused_async, reason = "all commands are called alike")]
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    // Into memory first: the generator panics where it cannot write, as into a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dprof-cli", &mut script);
    context.out.write_all(&script)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, run};

    #[test]
    fn every_shell_gets_every_command() {
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let (result, out, words) = run(Memory::default(), 80, &format!("completions {shell}"));
            assert!(result.is_ok());
            assert_eq!(words, "");
            for command in ["slowest-spans", "critical-path", "why"] {
                assert!(out.contains(command), "{shell} lacks {command}");
            }
        }
    }
}
