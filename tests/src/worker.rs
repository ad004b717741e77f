//! The worker: the process of a pod, a node or a client, inside its namespace and cgroup.
//!
//! It takes commands from the lab over the socket that is its standard input, and ends when the
//! lab closes it. One thread, so that a worker on the other core disturbs a measurement less.

mod latency;
mod load;
mod names;
mod serve;
mod socket;
mod sprint;

use crate::cgroup;
use crate::protocol::{Command, Opened, Request, Response};
use crate::traffic::{Ask, ExecOutput, Failure};
use anyhow::{Context, Result};
use load::Running;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;
use serde_json::Value;
use serve::Server;
use socket::Socket;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::{panic, process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Moves the calling process into a network namespace and a cgroup. It must have one thread.
pub fn enter(netns: &Path, cgroup: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter the network namespace {}", netns.display()))?;
    cgroup::join(cgroup)
}

/// Serves the lab until it hangs up; `name` is what servers answer with.
pub fn run(name: &str) -> Result<()> {
    // A task that panics would leave the lab without an answer; a worker that ends does not.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        process::abort();
    }));
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raise the limit of open files")?;
    let control = io::stdin().as_fd().try_clone_to_owned().context("take the lab's socket")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let control = StdUnixStream::from(control);
        control.set_nonblocking(true)?;
        let control = UnixStream::from_std(control).context("the standard input is no socket")?;
        Arc::new(Worker { name: name.to_owned(), ..Worker::default() }).serve(control).await
    })
}

/// The answer of a command that has nothing else to say.
const DONE: Result<Value, Failure> = Ok(Value::Null);

/// What a worker holds, by the numbers of the requests that began it.
#[derive(Default)]
struct Worker {
    name: String,
    servers: Held<Server>,
    sockets: Held<Arc<tokio::sync::Mutex<Socket>>>,
    loads: Held<Arc<Running>>,
    name_servers: Held<Arc<names::NameServer>>,
    name_clients: names::Clients,
}

struct Held<T>(Mutex<HashMap<u64, T>>);

impl Worker {
    async fn serve(self: Arc<Self>, control: UnixStream) -> Result<()> {
        let (read, mut write) = control.into_split();
        let (responses, mut queue) = mpsc::unbounded_channel::<Response>();
        tokio::spawn(async move {
            while let Some(response) = queue.recv().await {
                let mut line = serde_json::to_vec(&response)?;
                line.push(b'\n');
                write.write_all(&line).await?;
            }
            anyhow::Ok(())
        });
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await.context("read a command")? {
            let Request { id, command } = serde_json::from_str(&line).context("parse a command")?;
            // Before the next command is read, since that one may be to stop this load.
            if let Command::Load(load) = &command {
                self.loads.put(id, Arc::new(Running::new(load.clone())));
            }
            let worker = Arc::clone(&self);
            let responses = responses.clone();
            tokio::spawn(async move {
                let result = worker.obey(id, command).await;
                // Nobody reads any more when the lab has hung up.
                let _ = responses.send(Response { id, result });
            });
        }
        Ok(())
    }

    async fn obey(&self, id: u64, command: Command) -> Result<Value, Failure> {
        match command {
            Command::Hello => DONE,
            Command::Serve(serve) => {
                let name = serve.name.as_ref().unwrap_or(&self.name).clone();
                self.servers.put(id, Server::start(&serve, name)?);
                DONE
            }
            Command::StopServing(id) => json(self.servers.take(id)?.stop().await),
            Command::Ask(ask) => {
                let mut socket = Socket::open(&ask).await?;
                json(socket.ask(None, ask.payload, ask.timeout).await?)
            }
            Command::Open(ask) => json(self.open(id, &ask).await?),
            Command::AskAgain { socket, to, payload, timeout } => {
                let socket = self.sockets.clone_of(socket)?;
                let mut socket = socket.lock().await;
                json(socket.ask(to.as_deref(), payload, timeout).await?)
            }
            Command::Close(id) => self.sockets.take(id).and(DONE),
            Command::Load(_) => {
                let report = self.loads.clone_of(id)?.run().await;
                drop(self.loads.take(id)?);
                json(report)
            }
            Command::PeekLoad(id) => json(self.loads.clone_of(id)?.report()),
            Command::StopLoad(id) => {
                self.loads.clone_of(id)?.stop();
                DONE
            }
            Command::SprintServers(id) => sprint::serve(id).and(DONE),
            Command::Sprint(load) => json(sprint::run(load).await?),
            Command::NameSprint(load) => json(sprint::run_names(load).await?),
            Command::ServeNames(port) => {
                let server = names::NameServer::start(port).await?;
                self.name_servers.put(id, Arc::new(server));
                DONE
            }
            Command::TakeAsked(id) => json(self.name_servers.clone_of(id)?.take_asked()),
            Command::ExchangeNames(exchange) => json(self.name_clients.exchange(exchange).await?),
            Command::Exec { program, args } => json(exec(&program, &args).await?),
        }
    }

    async fn open(&self, id: u64, ask: &Ask) -> Result<Opened, Failure> {
        let socket = Socket::open(ask).await?;
        let opened = socket.opened()?;
        self.sockets.put(id, Arc::new(tokio::sync::Mutex::new(socket)));
        Ok(opened)
    }
}

impl<T> Held<T> {
    fn put(&self, id: u64, value: T) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(held.insert(id, value));
    }

    fn take(&self, id: u64) -> Result<T, Failure> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&id).ok_or_else(|| Failure::lab("it has ended already"))
    }
}

impl<T: Clone> Held<T> {
    fn clone_of(&self, id: u64) -> Result<T, Failure> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&id).cloned().ok_or_else(|| Failure::lab("it has ended already"))
    }
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

fn json(value: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(Failure::lab)
}

async fn exec(program: &str, args: &[String]) -> Result<ExecOutput, Failure> {
    let output = tokio::process::Command::new(program)
        .args(args)
        .stdin(process::Stdio::null())
        .output()
        .await
        .map_err(|error| Failure::lab(format!("run {program}: {error}")))?;
    Ok(ExecOutput {
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
