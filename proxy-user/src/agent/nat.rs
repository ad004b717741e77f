//! Follows what others change in the tables `shunt` of nftables, such as a firewall that starts
//! anew and flushes the rule set.
//!
//! Takes nftables' events; tells the agent that it has to look. Never writes.

use super::Agent;
use super::report::{Problems, chain};
use crate::model::Warning;
use crate::nat::TABLE;
use crate::netfilter::{Event, Events, NetfilterError, NetlinkPort};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How soon the events are followed again after an error.
const RETRY: Duration = Duration::from_secs(1);
/// How many doubts may wait; one is enough to make the agent look.
pub(super) const DOUBTS: usize = 4;

/// What speaks against the tables being as the agent left them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doubt {
    /// Somebody else has changed them.
    Changed,
    /// Events were lost: the agent's own, if nobody else has changed any table.
    Unsure,
}

/// Sends a doubt whenever there is reason for one. `own` is the agent's name in the events.
pub(super) fn spawn_watch(
    tasks: &mut JoinSet<()>,
    own: NetlinkPort,
    problems: Problems,
    doubts: mpsc::Sender<Doubt>,
) {
    tasks.spawn(async move {
        loop {
            let Err(error) = watch(own, &problems, &doubts).await;
            let subject = "events of nftables".to_owned();
            problems.set("nftables", vec![Warning { subject, message: chain(&error) }]);
            tokio::time::sleep(RETRY).await;
        }
    });
}

async fn watch(
    own: NetlinkPort,
    problems: &Problems,
    doubts: &mpsc::Sender<Doubt>,
) -> Result<Infallible, NetfilterError> {
    let mut events = Events::open()?;
    problems.set("nftables", Vec::new());
    let tell = |doubt| {
        // Of a full queue the agent has enough to look.
        let _full = doubts.try_send(doubt);
    };
    // Something may have happened before.
    tell(Doubt::Unsure);
    loop {
        for event in events.next().await? {
            match event {
                Event::Changed(change) if change.table.name == TABLE && change.by != own => {
                    tell(Doubt::Changed);
                }
                Event::Changed(_) | Event::Done(_) => {}
                Event::Lost => tell(Doubt::Unsure),
            }
        }
    }
}

impl Agent {
    /// Fills the tables of nftables anew, at once, unless they are sure to be as they were left.
    pub(super) fn mend_nat(&mut self, mut doubt: Doubt) {
        while let Ok(another) = self.nat_doubts.try_recv() {
            doubt = if another == Doubt::Changed { another } else { doubt };
        }
        if self.synced && (doubt == Doubt::Changed || !self.node.is_nat_untouched()) {
            tracing::warn!(
                "somebody else has changed the nftables table {TABLE}; it is written anew"
            );
            self.applier.doubt_nat();
            self.next_pass = Some(Instant::now());
        }
    }

    /// Lets ClusterIPs that are the node's to the node, and its own packets find NodePorts.
    pub(super) fn take_node_addrs(&mut self) {
        let own = self.planner.set_own_addrs(&self.world, self.node.own_addrs());
        self.touched.merge(own);
        let addrs = self.node.node_port_addrs().to_vec();
        if self.applier.set_output(addrs, self.node.is_socket_path_off()) && self.synced {
            self.next_pass = Some(Instant::now());
            self.after_udp.notify();
        }
    }
}
