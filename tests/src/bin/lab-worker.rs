//! The lab's own program: a worker, the guardian, or a door into a namespace for another
//! program. Only the lab starts it.

use anyhow::{Context, Result, bail};
use lab::{guard, worker};
use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guard", cgroup] => guard::run(Path::new(cgroup)),
        ["work", netns, cgroup, name] => {
            worker::enter(Path::new(netns), Path::new(cgroup))
                .with_context(|| format!("the worker of {name}"))?;
            worker::run(name).with_context(|| format!("the worker of {name}"))
        }
        ["enter", netns, cgroup, program, ref args @ ..] => {
            worker::enter(Path::new(netns), Path::new(cgroup))?;
            let error = Command::new(program).args(args).exec();
            Err(error).with_context(|| format!("run {program}"))
        }
        _ => bail!("the lab's own program; see the crate `tests`"),
    }
}
