//! What CoreDNS would answer: the cluster zone in memory, made from the objects that the test has
//! published.
//!
//! It shares the conversion of objects with the agent, and none of what decides about names: the
//! rows, the maps and the program are compared with it.

#[path = "oracle/answer.rs"]
pub(crate) mod answer;
#[path = "oracle/vectors.rs"]
mod vectors;
#[path = "oracle/zone.rs"]
mod zone;

use answer::{Action, answer};
use anyhow::{Context as _, Result, bail};
use hickory_proto::op::Message;
use proxy_user::model::{Change, ObjectName, World};
use proxy_user::source::convert::Converter;
use serde_json::Value;
use zone::{PodNames, Zone, ZoneSettings};

/// CoreDNS with the Corefile that kubeadm writes.
pub(crate) struct Oracle {
    converter: Converter,
    world: World,
    zone: Zone,
}

impl Oracle {
    /// CoreDNS in a cluster that has `objects`: Namespaces, Services and EndpointSlices.
    pub(crate) fn new(objects: impl IntoIterator<Item = Value>) -> Result<Self> {
        let mut oracle = Self {
            converter: Converter::new(true),
            world: World::default(),
            zone: Zone::new(settings()),
        };
        oracle.change(Change::AllServices(Vec::new()));
        oracle.change(Change::AllSlices(Vec::new()));
        for object in objects {
            oracle.take(object)?;
        }
        Ok(oracle)
    }

    /// Takes an object that is new or has changed.
    pub(crate) fn take(&mut self, object: Value) -> Result<()> {
        let change = match object["kind"].as_str() {
            Some("Namespace") => {
                Change::Namespace(self.converter.namespace(&serde_json::from_value(object)?))
            }
            Some("Service") => {
                let service = self.converter.service(&serde_json::from_value(object)?);
                Change::Service(Box::new(service.context("the Service has no name")?))
            }
            Some("EndpointSlice") => {
                let slice = self.converter.slice(&serde_json::from_value(object)?);
                Change::Slice(Box::new(slice.context("the EndpointSlice has no Service")?))
            }
            kind => bail!("{kind:?} has no names"),
        };
        self.change(change);
        Ok(())
    }

    fn change(&mut self, change: Change) {
        let touched = self.world.apply(change);
        self.zone.update(&self.world, &touched);
    }

    /// What it does for the bytes of a query.
    pub(crate) fn answer(&self, query: &[u8]) -> Result<Action> {
        Ok(answer(&self.zone, &Message::from_vec(query)?))
    }
}

fn settings() -> ZoneSettings {
    ZoneSettings {
        zone: "cluster.local".into(),
        ttl: 30,
        serial: 1_700_000_000,
        deny: true,
        pods: PodNames::Insecure,
        service: ObjectName { namespace: "kube-system".into(), name: "kube-dns".into() },
    }
}
