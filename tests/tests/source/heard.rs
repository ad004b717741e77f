//! When a source was last heard of, on which names are vouched for.

use super::cluster::{NODE, PATIENCE, WANTED, kube, service};
use anyhow::{Context as _, Result, ensure};
use lab::api::ApiServer;
use proxy_user::model::{Change, World};
use proxy_user::source::{self, Heard, SourceError, Wanted};
use std::net::TcpListener;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long names are good without a word (`NAMES_GOOD` of the agent).
const GOOD: Duration = Duration::from_secs(15);

/// Takes changes into `world` until `state` holds.
pub(super) async fn until(
    world: &mut World,
    changes: &mut Receiver<Change>,
    patience: Duration,
    state: impl Fn(&World) -> bool,
) -> Result<()> {
    let taking = async {
        while !state(world) {
            let _ = world.apply(changes.recv().await.context("the source ended")?);
        }
        anyhow::Ok(())
    };
    timeout(patience, taking).await.context("the state did not come")?
}

type Source = (World, Receiver<Change>, Heard, JoinHandle<Result<(), SourceError>>);

/// A source of `api` that is asked for names and has all objects.
pub(super) async fn start(dir: &TempDir, api: &ApiServer) -> Result<Source> {
    let config = kube(dir, &api.url(), None)?;
    let (sender, mut changes) = channel(64);
    let heard = Heard::default();
    let told = heard.clone();
    let wanted = Wanted { names: true, ..WANTED };
    let task = tokio::spawn(async move { source::run(&config, wanted, sender, told).await });
    let mut world = World::default();
    let all = |world: &World| world.synced() && world.namespaces().is_some();
    until(&mut world, &mut changes, PATIENCE, all).await?;
    Ok((world, changes, heard, task))
}

#[tokio::test]
async fn a_quiet_server_is_heard_of_all_the_time_and_a_lost_one_is_not() -> Result<()> {
    let mut api = ApiServer::on_loopback()?;
    api.apply_yaml(NODE)?;
    let dir = tempfile::tempdir()?;
    let (mut world, mut changes, heard, task) = start(&dir, &api).await?;
    // Longer than two watches; nothing happens in the cluster.
    let mut oldest = Duration::ZERO;
    for _ in 0..220 {
        sleep(Duration::from_millis(100)).await;
        oldest = oldest.max(heard.age());
    }
    ensure!(oldest < GOOD - Duration::from_secs(3), "{oldest:?}");
    let addr = api.addr();
    api.refuse_connections();
    let lost = async {
        while heard.age() < GOOD {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(GOOD + Duration::from_secs(1), lost).await.context("it is still heard of")?;
    api.accept_connections(TcpListener::bind(addr)?)?;
    api.apply_yaml(&service("a"))?;
    let a = |world: &World| world.services().len() == 1;
    until(&mut world, &mut changes, PATIENCE, a).await?;
    let back = async {
        while heard.age() > Duration::from_secs(5) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, back).await.context("it is not heard of again")?;
    task.abort();
    Ok(())
}
