//! Remarks: what is to be said of one Service, without saying it ten thousand times.
//!
//! A Service may have 10,000 ports, each with the same fault. The first remark of each kind is
//! kept, and the others are counted; without the Service's name, which whoever tells them adds.

/// What a remark is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum About {
    /// A name.
    Name,
    /// An address that is not served.
    Addr,
    /// A frontend that two of the Service's ports ask for.
    TwoPorts,
    /// A ClusterIP that the node has as an address.
    OwnAddr,
    /// A NodePort that is not served.
    NodePort,
}

/// The remarks on one Service.
#[derive(Debug, Default)]
pub(super) struct Remarks(Vec<Remark>);

#[derive(Debug)]
struct Remark {
    about: About,
    first: String,
    /// How many more there are like the first.
    more: usize,
}

impl Remarks {
    /// Adds a remark; `sentence` makes it, if it is the first of its kind.
    pub(super) fn add(&mut self, about: About, sentence: impl FnOnce() -> String) {
        match self.0.iter_mut().find(|remark| remark.about == about) {
            Some(remark) => remark.more += 1,
            None => self.0.push(Remark { about, first: sentence(), more: 0 }),
        }
    }

    /// Whether there is nothing to say.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A sentence for each kind.
    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|Remark { first, more, .. }| match more {
            0 => first.clone(),
            more => format!("{first}; {more} more like this"),
        })
    }
}
