//! The kernel programs in the kernel: they load, and made packets come out as they should.

use proxy_ebpf::choose::NodePortRange;
use proxy_user::loader::{Dataplane, Settings};

#[test]
fn programs_load() {
    let root = std::path::PathBuf::from(std::env::var("BPFFS").unwrap());
    let settings = Settings {
        bpffs_root: root,
        node_ports: NodePortRange { first: 30000, last: 32767 },
        snat_ports: 61000..=65535,
        log_level: None,
    };
    if let Err(e) = Dataplane::load(&settings) {
        let mut s: &dyn std::error::Error = &e;
        loop {
            let t = s.to_string();
            println!("{}", &t[..t.len().min(200)]);
            println!("...{}", &t[t.len().saturating_sub(6000)..]);
            match s.source() {
                Some(n) => s = n,
                None => break,
            }
        }
        panic!();
    }
}
