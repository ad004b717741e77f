//! Publishing: what is placed becomes what new connections see, all of it or nothing.
//!
//! Nothing can be published whose backends NAT does not know. What a pass could not publish is kept
//! for the next one, and what it would have replaced stays in use.

use super::{Applier, ApplyError, Step, Store};
use crate::tables::{FrontendRow, ServiceKey, TableDelta};
use proxy_ebpf::frontend::FrontendKey;
use proxy_ebpf::slot::BackendState;

impl<S: Store> Applier<S> {
    /// Lets new connections see what is placed, and ends what is replaced.
    pub(super) fn publish(
        &mut self,
        step: Step,
        removals: Vec<FrontendKey>,
        gone: Vec<ServiceKey>,
        errors: &mut Vec<ApplyError>,
    ) {
        self.quarantine.append(std::mem::take(&mut self.held));
        self.nat.touched.extend(step.placed.iter().map(|(key, _)| key.clone()));
        self.put_frontends(step.publish, errors);
        self.remove_frontends(removals, errors);
        self.put_refused(errors);
        for (key, row) in step.placed {
            self.settle(&key, &row, errors);
        }
        let vacated = std::mem::take(&mut self.vacated).into_iter();
        let vacated = vacated.filter(|key| self.unwritten.removes(key)).collect::<Vec<_>>();
        for key in gone.into_iter().chain(vacated) {
            self.nat.touched.insert(key.clone());
            self.remove_service(&key, errors);
        }
        errors.extend(self.write_output().err());
        for (id, end) in step.departed.backends {
            self.store.write_backend(id, BackendState::default());
            self.quarantine.backends.push((id, end));
        }
    }

    /// Keeps what cannot be published for the next pass. What was replaced is still in use.
    pub(super) fn postpone(
        &mut self,
        step: Step,
        removals: Vec<FrontendKey>,
        gone: Vec<ServiceKey>,
        error: &ApplyError,
    ) {
        for (key, (service, value)) in step.publish {
            let row = FrontendRow { service, flags: value.flags() };
            self.unwritten.add_frontend(key, Some(row), error.clone());
        }
        for key in removals {
            self.unwritten.add_frontend(key, None, error.clone());
        }
        for (key, row) in step.placed {
            self.unwritten.add_service(key, Some(row), error.clone());
        }
        for key in gone {
            self.unwritten.add_service(key, None, error.clone());
        }
        self.held.append(std::mem::take(&mut self.quarantine));
        self.departed = step.departed;
        self.nat.is_unpublished = true;
    }

    /// Adds what the last pass could not publish to `delta`, which counts more.
    pub(super) fn with_unpublished(&mut self, delta: TableDelta) -> TableDelta {
        if !std::mem::take(&mut self.nat.is_unpublished) {
            return delta;
        }
        let mut all = self.unwritten.take();
        all.services.extend(delta.services);
        all.frontends.extend(delta.frontends);
        all.names = delta.names;
        all
    }
}
