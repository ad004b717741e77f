//! The kernel's modules that a machine needs: the wanted ones and those that they depend on.
//!
//! Takes the package of a kernel as it is unpacked; gives files named by the order in which they
//! have to be loaded. A machine has no `modprobe`, so nothing is loaded on demand.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What Shunt and the lab need of the kernel; `crc32c_generic` is what conntrack's checksums ask
/// for by another name.
const WANTED: [&str; 22] = [
    "crc32c_generic",
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_hash",
    "nft_numgen",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_flow_offload",
    "nf_flow_table_inet",
    "tcp_diag",
    "udp_diag",
];

/// Copies the modules of `kernel` (`PACKAGE/boot/vmlinuz-VERSION`) into `folder`.
pub(super) fn pack(kernel: &Path, folder: &Path) -> Result<()> {
    let image = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let version = image.trim_start_matches("vmlinuz-");
    let package = kernel.ancestors().nth(2).context("a kernel lies in its package")?;
    let tree = package.join("lib/modules").join(version);
    let builtin = fs::read_to_string(tree.join("modules.builtin"))
        .with_context(|| format!("{} has no modules.builtin", tree.display()))?;
    let builtin: Vec<_> = builtin.lines().map(|path| name(Path::new(path))).collect();
    let mut files = BTreeMap::new();
    find(&tree.join("kernel"), &mut files)?;
    let mut packed = Vec::new();
    for wanted in WANTED.map(str::to_owned).iter().filter(|wanted| !builtin.contains(wanted)) {
        add(wanted, &files, folder, &mut packed)?;
    }
    Ok(())
}

/// The paths of all modules below `folder`, by name.
fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else {
            let _first = files.insert(name(&path), path);
        }
    }
    Ok(())
}

/// Copies the module `module` and those that it depends on, which come first; not again what is
/// `packed`.
fn add(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    folder: &Path,
    packed: &mut Vec<String>,
) -> Result<()> {
    if packed.iter().any(|done| done == module) {
        return Ok(());
    }
    let file = files.get(module).with_context(|| format!("the kernel has no module {module}"))?;
    let bytes = read(file)?;
    for needed in dependencies(&bytes) {
        add(&needed, files, folder, packed)?;
    }
    fs::write(folder.join(format!("{:03}-{module}.ko", packed.len())), bytes)
        .with_context(|| format!("cannot copy {}", file.display()))?;
    packed.push(module.to_owned());
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let unpacked = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
    let unpacked = unpacked.context("cannot run xz")?;
    ensure!(unpacked.status.success(), "xz does not read {}", file.display());
    Ok(unpacked.stdout)
}

/// The names behind `depends=` in a module's section `.modinfo` (modinfo(8)).
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|bytes| bytes == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// `nft_nat` of `kernel/net/netfilter/nft_nat.ko.xz`; the kernel takes dashes for underscores.
fn name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_between_the_other_facts_of_a_module() {
        let module = b"\x7fELF\0license=GPL\0depends=nf_tables,nf_nat\0name=nft_nat\0";
        assert_eq!(dependencies(module), ["nf_tables", "nf_nat"]);
        assert_eq!(dependencies(b"\0license=GPL\0depends=\0"), [""; 0]);
        assert_eq!(dependencies(b"\0license=GPL\0"), [""; 0]);
    }

    #[test]
    fn a_module_is_known_by_its_name_without_compression_and_dashes() {
        assert_eq!(name(Path::new("kernel/net/bridge/br-x_y.ko.xz")), "br_x_y");
    }
}
