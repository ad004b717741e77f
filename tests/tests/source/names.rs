//! What has a name in DNS, beyond what is served: only for who wants it.

use super::cluster::{NODE, PATIENCE, WANTED, kube, service};
use anyhow::{Context as _, Result};
use lab::api::ApiServer;
use proxy_user::model::{Change, World};
use proxy_user::source::{self, Heard, SourceConfig, Wanted};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

/// Takes changes into `world` until `state` holds.
async fn until(
    world: &mut World,
    changes: &mut Receiver<Change>,
    state: impl Fn(&World) -> bool,
) -> Result<()> {
    while !state(world) {
        let change = timeout(PATIENCE, changes.recv()).await?.context("the source ended")?;
        let _ = world.apply(change);
    }
    Ok(())
}

#[tokio::test]
async fn names_come_from_both_sources_to_who_wants_them() -> Result<()> {
    let api = ApiServer::on_loopback()?;
    let (folder, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let labels = "labels: {service.kubernetes.io/service-proxy-name: x}";
    let other = service("other").replace("name: other", &format!("name: other, {labels}"));
    let headless = service("db").replace("10.96.0.1", "None");
    let namespaces = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: default}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: empty}}\n";
    let map = |name: &str, text: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, \
             namespace: kube-system}}, data: {{Corefile: '{text}'}}}}\n"
        )
    };
    let objects = |corefile: &str| {
        let (wrong, right) = (map("other", "wrong"), map("coredns", corefile));
        NODE.to_owned() + &other + &headless + namespaces + &wrong + &right
    };
    let write = |text: &str| std::fs::write(folder.path().join("all.yaml"), text);
    let everything = |corefile: &'static str| {
        move |world: &World| {
            let is_named = |name: &str| world.services().any(|s| &*s.name.name == name);
            world.synced()
                && world.services().any(|service| service.other_proxy)
                && world.services().any(|service| service.headless && is_named("db"))
                && world
                    .namespaces()
                    .is_some_and(|all| all.iter().map(|name| &**name).eq(["default", "empty"]))
                && world.corefile() == Some(Some(corefile))
        }
    };
    api.apply_yaml(&objects("one"))?;
    write(&objects("one"))?;
    for config in
        [kube(&dir, &api.url(), None)?, SourceConfig::Files { manifests: folder.path().into() }]
    {
        let (sender, mut changes) = channel(64);
        let wanted = Wanted { names: true, ..WANTED };
        let task =
            tokio::spawn(
                async move { source::run(&config, wanted, sender, Heard::default()).await },
            );
        let mut world = World::default();
        until(&mut world, &mut changes, everything("one")).await?;
        // And what changes.
        api.apply_yaml(&objects("two"))?;
        write(&objects("two"))?;
        until(&mut world, &mut changes, everything("two")).await?;
        api.delete("namespaces", "", "empty");
        api.delete("configmaps", "kube-system", "coredns");
        write(
            &(service("other") + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: n}}\n"),
        )?;
        let fewer = |world: &World| {
            world.namespaces().is_some_and(|all| !all.contains("empty"))
                && world.corefile() == Some(None)
        };
        until(&mut world, &mut changes, fewer).await?;
        api.apply_yaml(&objects("one"))?;
        write(&objects("one"))?;
        until(&mut world, &mut changes, everything("one")).await?;
        task.abort();
    }
    Ok(())
}
