//! The lab's end of a worker: its process, and the socket that commands go over.

use crate::netns::Netns;
use crate::program;
use crate::protocol::{Command, Request, Response};
use crate::traffic::Failure;
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{self, Child};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

/// A worker, and the commands that it has not answered yet.
pub(super) struct Remote {
    name: Arc<str>,
    child: Child,
    commands: AsyncMutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

type Answer = Result<Value, Failure>;
type Senders = HashMap<u64, oneshot::Sender<Answer>>;

/// Who waits for which answer; `None` once the worker has hung up.
struct Waiting(Mutex<Option<Senders>>);

/// An answer that is still to come.
pub(super) struct Pending {
    machine: Arc<str>,
    answer: oneshot::Receiver<Answer>,
}

impl Remote {
    /// Starts the worker that is to act in `netns` and `cgroup`.
    pub(super) fn start(netns: &Netns, cgroup: &Path) -> Result<Self> {
        let name: Arc<str> = netns.to_string().into();
        let (ours, theirs) = StdUnixStream::pair().context("make a pair of sockets")?;
        ours.set_nonblocking(true)?;
        let child = process::Command::new(program::find("lab-worker")?)
            .arg("work")
            .args([&netns.path(), cgroup])
            .arg(&*name)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .with_context(|| format!("start the worker of {name}"))?;
        let (answers, commands) = UnixStream::from_std(ours)?.into_split();
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        tokio::spawn(read_answers(answers, Arc::clone(&waiting)));
        Ok(Self { name, child, commands: AsyncMutex::new(commands), waiting, next: 0.into() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn call<T: DeserializeOwned>(&self, command: Command) -> Result<T, Failure> {
        self.begin(command).await?.1.result().await
    }

    /// Sends a command; gives its number, and the answer to wait for.
    pub(super) async fn begin(&self, command: Command) -> Result<(u64, Pending), Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => drop(waiting.insert(id, sender)),
            None => return Err(gone(&self.name)),
        }
        let mut line = serde_json::to_vec(&Request { id, command }).map_err(Failure::lab)?;
        line.push(b'\n');
        let mut commands = self.commands.lock().await;
        commands.write_all(&line).await.map_err(|_| gone(&self.name))?;
        Ok((id, Pending { machine: Arc::clone(&self.name), answer }))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended before; waiting for it leaves no zombie.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pending {
    pub(super) async fn result<T: DeserializeOwned>(self) -> Result<T, Failure> {
        let value = self.answer.await.map_err(|_| gone(&self.machine))?.map_err(|failure| {
            Failure { message: format!("{}: {}", self.machine, failure.message), ..failure }
        })?;
        serde_json::from_value(value).map_err(Failure::lab)
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<Senders>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_answers(answers: OwnedReadHalf, waiting: Arc<Waiting>) {
    let mut lines = BufReader::new(answers).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(Response { id, result }) = serde_json::from_str(&line) else { break };
        let sender = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&id));
        if let Some(sender) = sender {
            // Whoever asked may have given up.
            let _ = sender.send(result);
        }
    }
    // Dropping the senders tells those who wait.
    drop(waiting.lock().take());
}

fn gone(machine: &str) -> Failure {
    Failure::lab(format!("the worker of {machine} has ended; its own words are on stderr"))
}
