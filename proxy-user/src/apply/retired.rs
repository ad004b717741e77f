//! Backends that UDP sockets may still be connected to although they serve no longer, and whose
//! sockets those are: a backend of two Services may leave one of them and stay with the other.
//!
//! Takes what leaves and returns, gives what the map `retired` is to hold; does no I/O.

use proxy_ebpf::flow::End;
use proxy_ebpf::service::ServiceId;

use std::collections::HashMap;

/// Stands for more than one service: nobody knows any more when all of them have it again.
const SEVERAL: ServiceId = ServiceId(u32::MAX);

/// Retired backends, each with the service that it has left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retired(HashMap<End, ServiceId>);

impl Retired {
    /// Notes that `backend` serves `service` no longer; returns the service to write beside it.
    pub fn leave(&mut self, backend: End, service: ServiceId) -> ServiceId {
        let left = self.0.entry(backend).or_insert(service);
        if *left != service {
            *left = SEVERAL;
        }
        *left
    }

    /// Notes that `backend` serves `service` again. Returns whether it is retired no longer,
    /// because it had left no other one.
    pub fn come_back(&mut self, backend: &End, service: ServiceId) -> bool {
        let is_back = self.0.get(backend) == Some(&service);
        if is_back {
            self.0.remove(backend);
        }
        is_back
    }

    /// The retired backends.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        self.0.keys()
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<(End, ServiceId)> for Retired {
    fn from_iter<I: IntoIterator<Item = (End, ServiceId)>>(rows: I) -> Self {
        Self(rows.into_iter().collect())
    }
}
