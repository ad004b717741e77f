//! The demo, as a user runs it: it shows everything, fails when something is broken, and leaves
//! nothing behind.

use anyhow::{Context, Result, ensure};
use lab::program;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// How long a demo may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const STEPS: [&str; 11] = [
    "Cluster",
    "ClusterIP",
    "Source address",
    "NodePort",
    "UDP",
    "IPv6",
    "Rollout",
    "Unready pod",
    "No endpoints",
    "Agent killed",
    "Commands",
];

/// A demo that runs, alone: demos measure, and disturb each other.
struct Demo {
    child: Child,
    pid: u32,
    _alone: MutexGuard<'static, ()>,
}

impl Demo {
    async fn start(args: &[&str]) -> Result<Self> {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let child = Command::new(program::find("demo")?)
            .args(args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().context("it has just begun")?;
        Ok(Self { child, pid, _alone: alone })
    }

    fn lines(&mut self) -> Result<Lines<BufReader<ChildStdout>>> {
        let stdout = self.child.stdout.take().context("its output is read twice")?;
        Ok(BufReader::new(stdout).lines())
    }

    /// Sends what Ctrl-C sends.
    fn interrupt(&self) -> Result<()> {
        let pid = Pid::from_raw(self.pid.try_into()?).context("a process id is not 0")?;
        Ok(kill_process(pid, Signal::INT)?)
    }

    /// Waits for its end; whatever it came to, nothing of it may be left.
    async fn end(mut self) -> Result<ExitStatus> {
        let status = timeout(LIMIT, self.child.wait()).await.context("wait for its end")??;
        let left = self.belongings()?;
        ensure!(left.is_empty(), "the demo has left {left:?}");
        Ok(status)
    }

    /// The cgroup trees and scratch directories of its lab.
    fn belongings(&self) -> Result<Vec<PathBuf>> {
        let prefix = format!("shunt-lab-{}-", self.pid);
        let mut found = Vec::new();
        for folder in [cgroup_root()?, std::env::temp_dir()] {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default();
                if name.to_string_lossy().starts_with(&prefix) {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }
}

/// The root of the cgroup2 hierarchy.
fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let cgroup2 = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let root = cgroup2.into_iter().find(|fields| fields[2] == "cgroup2").context("no cgroup2")?;
    Ok(Path::new(root[1]).to_owned())
}

#[tokio::test]
async fn every_step_holds() -> Result<()> {
    let mut demo = Demo::start(&["--json"]).await?;
    let mut text = String::new();
    let mut stdout = demo.child.stdout.take().context("its output")?;
    let _ = timeout(LIMIT, stdout.read_to_string(&mut text)).await.context("read its report")??;
    let status = demo.end().await?;

    let report: Value = serde_json::from_str(&text).context("one document and nothing else")?;
    let steps = report["steps"].as_array().context("steps")?;
    for step in steps {
        assert_eq!(step["ok"], true, "{}: {}", step["name"], step["failure"]);
        assert!(step["detail"].as_array().is_some_and(|detail| !detail.is_empty()), "{step}");
    }
    assert_eq!(steps.iter().map(|step| &step["name"]).collect::<Vec<_>>(), STEPS);
    assert_eq!((&report["ok"], status.code()), (&Value::Bool(true), Some(0)));

    // The two loads of each of the steps that change something.
    let details = steps.iter().flat_map(|step| step["detail"].as_array().into_iter().flatten());
    let loads: Vec<_> =
        details.map(|fact| &fact["numbers"]).filter(|n| !n["failed"].is_null()).collect();
    assert_eq!(loads.len(), 4);
    for load in loads {
        assert_eq!(load["failed"], 0);
        assert!(
            load["requests"].as_u64() >= Some(100) && load["pods"].as_u64() >= Some(6),
            "{load}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_pod_fails_the_steps_that_need_it_and_no_others() -> Result<()> {
    let mut demo = Demo::start(&[]).await?;
    let mut lines = demo.lines()?;
    let mut steps = Vec::new();
    while let Some(line) = timeout(LIMIT, lines.next_line()).await.context("read a line")?? {
        if let Some(step) = line.strip_prefix("  ✔ ").or(line.strip_prefix("  ✘ ")) {
            steps.push((step.get(..14).unwrap_or(step).trim().to_owned(), line.contains('✔')));
        }
        if line.contains("✔ Cluster ") {
            // Its endpoint stays ready: an outage that nobody has noticed.
            let tree = demo.belongings()?.into_iter().find(|path| path.join("node-1").is_dir());
            let pod = tree.context("its cgroups")?.join("node-1/pod-web-1");
            fs::write(pod.join("cgroup.kill"), "1").context("kill the pod")?;
        }
    }
    assert_eq!(demo.end().await?.code(), Some(1));
    assert_eq!(steps.iter().map(|(name, _)| name).collect::<Vec<_>>(), STEPS);
    for (name, expected) in
        [("NodePort", false), ("Rollout", false), ("No endpoints", true), ("Commands", true)]
    {
        assert!(steps.contains(&(name.to_owned(), expected)), "{steps:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_behind() -> Result<()> {
    // While it starts, and in the middle of its steps.
    for mark in [None, Some("✔ ClusterIP")] {
        let mut demo = Demo::start(&[]).await?;
        let mut lines = demo.lines()?;
        let begun = async {
            match mark {
                None => {
                    while demo.belongings()?.is_empty() {
                        tokio::task::yield_now().await;
                    }
                }
                Some(mark) => while !lines.next_line().await?.context("a line")?.contains(mark) {},
            }
            anyhow::Ok(())
        };
        timeout(LIMIT, begun).await.context("wait for its beginning")??;
        demo.interrupt()?;
        assert_eq!(demo.end().await?.code(), Some(130), "{mark:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_demo_that_is_kept_says_how_to_look_around_and_ends_when_told() -> Result<()> {
    let mut demo = Demo::start(&["--keep"]).await?;
    let mut lines = demo.lines()?;
    let mut commands = Vec::new();
    let read = async {
        // What comes after that is for those who have kubectl.
        let is_last = |line: &str| line.contains("shunt explain") && line.contains("--bpffs-root");
        while let Some(line) = lines.next_line().await? {
            let done = is_last(&line);
            commands.push(line);
            if done {
                break;
            }
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, read).await.context("read how to look around")??;
    let kept = commands.iter().filter(|line| line.starts_with("  /"));
    let mut asked = 0;
    for command in kept {
        let output = Command::new("bash").args(["-c", command]).output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && !said.is_empty(), "{command}: {output:?}");
        asked += usize::from(said.starts_with("web-v2-") && said.ends_with(" hello\n"));
    }
    assert_eq!(asked, 3, "two from the pod, one from outside: {commands:#?}");
    demo.interrupt()?;
    assert_eq!(demo.end().await?.code(), Some(0));
    Ok(())
}
