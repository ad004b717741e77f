//! What is answered of the zone, and whether it may be said that a name does not exist.
//!
//! A pure function of the flags, the Corefile and what has been listed, with the reason in words.

use super::corefile::{self, Corefile};
use crate::config::{Denial, DnsConfig};

/// The time to live where neither a flag nor a Corefile gives one; kubeadm's.
const TTL: u32 = 30;

/// What is decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The time to live of answers, in seconds.
    pub ttl: u32,
    /// Whether names are denied.
    pub deny: bool,
    /// Whether the kernel counts what it would deny, and leaves it alone.
    pub shadow: bool,
    /// Why, for people.
    pub reason: String,
}

/// Decides by the flags `config`, the Corefile (`None` until it is known whether there is one),
/// and whether the Namespaces are listed.
pub fn decide(
    config: &DnsConfig,
    corefile: Option<Option<&str>>,
    namespaces_listed: bool,
) -> Policy {
    let read = corefile.flatten().map(|text| corefile::read(text, &config.zone));
    let ttl = config.ttl.or(read.as_ref().map(|read| read.ttl)).unwrap_or(TTL);
    let (wanted, reason) = match (config.deny, read) {
        (Denial::Off, _) => (false, "--dns-deny=off".to_owned()),
        (Denial::On, _) => (true, "--dns-deny=on".to_owned()),
        (Denial::Shadow, _) => {
            (true, "--dns-deny=shadow: denials are counted, not sent".to_owned())
        }
        (Denial::Auto, Some(Corefile { denial: Err(reason), .. })) => (false, reason),
        (Denial::Auto, Some(Corefile { denial: Ok(()), .. })) => {
            (true, "the Corefile answers the zone from the cluster alone".to_owned())
        }
        (Denial::Auto, None) if corefile.is_none() => {
            (false, "the Corefile has not been read yet".to_owned())
        }
        (Denial::Auto, None) => {
            (false, "there is no ConfigMap kube-system/coredns with a Corefile".to_owned())
        }
    };
    let shadow = config.deny == Denial::Shadow;
    if wanted && !namespaces_listed {
        let reason = "the Namespaces are not listed yet".to_owned();
        return Policy { ttl, deny: false, shadow, reason };
    }
    Policy { ttl, deny: wanted, shadow, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    const COREFILE: &str = ".:53 {\n kubernetes cluster.local {\n ttl 17\n pods insecure\n }\n}\n";

    fn config(deny: Denial) -> DnsConfig {
        DnsConfig {
            deny,
            zone: "cluster.local".to_owned(),
            service: ObjectName { namespace: "kube-system".into(), name: "kube-dns".into() },
            ttl: None,
            limit: 0,
        }
    }

    #[test]
    fn auto_denies_only_with_a_corefile_that_gives_leave() {
        let deny = |corefile| {
            let policy = decide(&config(Denial::Auto), corefile, true);
            (policy.deny, policy.ttl)
        };
        assert_eq!(deny(Some(Some(COREFILE))), (true, 17));
        let other = COREFILE.replace("ttl 17", "noendpoints");
        assert_eq!(deny(Some(Some(&other))), (false, 5));
        assert_eq!(deny(Some(None)), (false, TTL));
        assert_eq!(deny(None), (false, TTL));
    }

    #[test]
    fn flags_count_more_than_the_corefile() {
        let decided = |mode, corefile| {
            let policy = decide(&config(mode), corefile, true);
            (policy.deny, policy.shadow)
        };
        assert_eq!(decided(Denial::Off, Some(Some(COREFILE))), (false, false));
        assert_eq!(decided(Denial::On, Some(None)), (true, false));
        assert_eq!(decided(Denial::Shadow, None), (true, true));
        let ttl = DnsConfig { ttl: Some(7), ..config(Denial::Auto) };
        assert_eq!(decide(&ttl, Some(Some(COREFILE)), true).ttl, 7);
    }

    #[test]
    fn nothing_is_denied_before_the_namespaces_are_listed() {
        for mode in [Denial::On, Denial::Auto, Denial::Shadow] {
            assert!(!decide(&config(mode), Some(Some(COREFILE)), false).deny, "{mode:?}");
        }
    }
}
