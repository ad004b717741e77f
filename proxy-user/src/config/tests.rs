//! Flags, variables and files in, configuration or one sentence out.

use super::*;
use clap::{CommandFactory, Parser};
use std::io::Write as _;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    agent: AgentArgs,
}

fn args(flags: &[&str]) -> AgentArgs {
    Cli::try_parse_from(["agent"].iter().chain(flags)).unwrap().agent
}

fn file(yaml: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    file
}

/// The flags, and the sentence without the path of the file.
fn refusal(flags: &[&str], yaml: &str) -> String {
    let file = file(yaml);
    let path = file.path().to_str().unwrap();
    let flags: Vec<_> = ["--config", path].iter().chain(flags).copied().collect();
    args(&flags).resolve().unwrap_err().to_string().replace(path, "FILE")
}

#[test]
fn the_defaults_suit_a_kubeadm_node() {
    let config = args(&["--node-name", " Node-1\n"]).resolve().unwrap();
    assert_eq!(
        config,
        AgentConfig {
            source: SourceConfig::Kube { kubeconfig: None },
            node_name: "node-1".to_owned(),
            cgroup_root: None,
            bpffs_root: "/sys/fs/bpf".into(),
            socket_path: SocketPath::Auto,
            devices: DeviceSelection::Auto,
            pod_devices: ["veth*", "cali*", "lxc*", "eni*", "azv*", "gke*"]
                .map(str::to_owned)
                .into(),
            cluster_cidrs: vec![],
            detect_local: DetectLocal::ClusterCidr,
            node_port_addresses: NodePortAddresses::Primary,
            node_port_range: PortRange { first: 30_000, last: 32_767 },
            masquerade_bit: 14,
            masquerade_all: false,
            external_ips: true,
            conntrack: ConntrackConfig {
                max_per_core: 32_768,
                min: 131_072,
                tcp_established: Duration::from_secs(24 * 3600),
                tcp_close_wait: Duration::from_secs(3600),
                tcp_be_liberal: false,
                udp: Duration::ZERO,
                udp_stream: Duration::ZERO,
                sysctl_root: "/proc/sys".into(),
            },
            dns: None,
            min_sync_period: Duration::from_millis(50),
            drift_check_period: Duration::from_secs(60),
            healthz_bind_address: "[::]:10256".parse().unwrap(),
            metrics_bind_address: "127.0.0.1:10249".parse().unwrap(),
            control_socket: "/run/shunt/agent.sock".into(),
            log_format: LogFormat::Text,
            log_level: tracing::Level::INFO,
            warnings: Vec::new(),
        }
    );
    let host_name = rustix::system::uname().nodename().to_str().unwrap().to_lowercase();
    assert_eq!(args(&[]).resolve().unwrap().node_name, host_name);
}

#[test]
fn every_setting_can_be_given_in_a_file() {
    let file = file(
        "source: files\nmanifests: here\nnode-name: n\ncgroup-root: /c\nbpffs-root: /b\n\
         socket-path: off\ndevices: [eth0, 'ens*']\npod-devices: p*\n\
         cluster-cidr: [10.0.0.0/8, 'fd00::/8']\n\
         detect-local-mode: BridgeInterface\npod-bridge-interface: cni0\n\
         node-port-addresses: 192.168.0.0/16\nnode-port-range: 1-2\nmasquerade-bit: 31\n\
         masquerade-all: true\nexternal-ips: 'false'\n\
         conntrack-max-per-core: 0\nconntrack-min: 1\n\
         conntrack-tcp-timeout-established: 1h\nconntrack-tcp-timeout-close-wait: 1m\n\
         conntrack-tcp-be-liberal: true\nconntrack-udp-timeout: 2s\n\
         conntrack-udp-timeout-stream: 3s\nsysctl-root: /s\n\
         min-sync-period: 0\ndrift-check-period: 1m30s\nhealthz-bind-address: '[::]:1'\n\
         metrics-bind-address: 127.0.0.1:2\ncontrol-socket: /s\nlog-format: json\n\
         log-level: trace\nkubeconfig:\n",
    );
    let config = args(&["--config", file.path().to_str().unwrap()]).resolve().unwrap();
    assert_eq!(
        config,
        AgentConfig {
            source: SourceConfig::Files { manifests: "here".into() },
            node_name: "n".to_owned(),
            cgroup_root: Some("/c".into()),
            bpffs_root: "/b".into(),
            socket_path: SocketPath::Off,
            devices: DeviceSelection::Named(vec!["eth0".to_owned(), "ens*".to_owned()]),
            pod_devices: vec!["p*".to_owned()],
            cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            detect_local: DetectLocal::BridgeInterface("cni0".to_owned()),
            node_port_addresses: NodePortAddresses::Cidrs(vec!["192.168.0.0/16".parse().unwrap()]),
            node_port_range: PortRange { first: 1, last: 2 },
            masquerade_bit: 31,
            masquerade_all: true,
            external_ips: false,
            conntrack: ConntrackConfig {
                max_per_core: 0,
                min: 1,
                tcp_established: Duration::from_secs(3600),
                tcp_close_wait: Duration::from_secs(60),
                tcp_be_liberal: true,
                udp: Duration::from_secs(2),
                udp_stream: Duration::from_secs(3),
                sysctl_root: "/s".into(),
            },
            dns: None,
            min_sync_period: Duration::ZERO,
            drift_check_period: Duration::from_secs(90),
            healthz_bind_address: "[::]:1".parse().unwrap(),
            metrics_bind_address: "127.0.0.1:2".parse().unwrap(),
            control_socket: "/s".into(),
            log_format: LogFormat::Json,
            log_level: tracing::Level::TRACE,
            warnings: Vec::new(),
        }
    );
}

/// An upgrade must not stop for a flag that has lost its meaning; it says so.
#[test]
fn the_range_of_snat_ports_is_taken_and_means_nothing() {
    let config = |flags: &[&str]| args(flags).resolve().unwrap();
    let given = config(&["--snat-port-range", "30000-31000"]);
    let [warning] = &given.warnings[..] else { panic!("{:?}", given.warnings) };
    assert_eq!(warning.subject, "--snat-port-range");
    assert_eq!(AgentConfig { warnings: Vec::new(), ..given }, config(&[]));
}

#[test]
fn the_socket_path_serves_as_many_as_it_is_told_to() {
    let path = |choice| args(&["--socket-path", choice]).resolve().unwrap().socket_path;
    assert_eq!(path("auto"), SocketPath::Auto);
    assert_eq!(path("all"), SocketPath::All);
    assert_eq!(path("host"), SocketPath::Host);
}

#[test]
fn pods_are_told_by_the_mode_and_the_interface_that_it_needs() {
    let mode = |flags: &[&str]| args(flags).resolve().unwrap().detect_local;
    assert_eq!(mode(&["--detect-local-mode", "NodeCIDR"]), DetectLocal::NodeCidr);
    let bridge = ["--detect-local-mode=BridgeInterface", "--pod-bridge-interface= cni0"];
    assert_eq!(mode(&bridge), DetectLocal::BridgeInterface("cni0".to_owned()));
    let prefix = ["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cali"];
    assert_eq!(mode(&prefix), DetectLocal::InterfaceNamePrefix("cali".to_owned()));

    assert_eq!(
        refusal(&bridge[..1], ""),
        "--detect-local-mode BridgeInterface needs an interface: add --pod-bridge-interface NAME"
    );
    assert_eq!(
        refusal(&prefix[..1], ""),
        "--detect-local-mode InterfaceNamePrefix needs an interface: add \
         --pod-interface-name-prefix PREFIX"
    );
    assert_eq!(
        refusal(&[bridge[0], bridge[1], prefix[1]], ""),
        "--pod-interface-name-prefix is for --detect-local-mode InterfaceNamePrefix alone: leave \
         it out, or choose that mode"
    );
    assert_eq!(
        refusal(&[], "pod-bridge-interface: cni0"),
        "pod-bridge-interface in FILE is for --detect-local-mode BridgeInterface alone: leave it \
         out, or choose that mode"
    );
    assert_eq!(
        refusal(&["--detect-local-mode", "clusterCIDR"], ""),
        "--detect-local-mode: \"clusterCIDR\" is no mode: write one of ClusterCIDR, NodeCIDR, \
         BridgeInterface, InterfaceNamePrefix"
    );
    assert_eq!(
        refusal(&[bridge[0], "--pod-bridge-interface", "cni*"], ""),
        "--pod-bridge-interface: \"cni*\" is no name of an interface nor the beginning of one: \
         write up to 15 letters as `ip link` shows them, without a pattern"
    );
}

#[test]
fn names_are_answered_as_the_flags_say() {
    let dns = |flags: &[&str]| args(flags).resolve().unwrap().dns;
    let kube_dns = ObjectName { namespace: "kube-system".into(), name: "kube-dns".into() };
    let kernel = DnsConfig {
        deny: Denial::Auto,
        zone: "cluster.local".to_owned(),
        service: kube_dns,
        ttl: None,
        limit: 20_000,
    };
    assert_eq!(dns(&["--dns", "kernel"]), Some(kernel));
    let flags = ["--dns=kernel", "--dns-deny=shadow", "--dns-zone=K8s.Example.", "--dns-ttl=7"];
    let given = DnsConfig {
        deny: Denial::Shadow,
        zone: "k8s.example".to_owned(),
        service: ObjectName { namespace: "a".into(), name: "b".into() },
        ttl: Some(7),
        limit: 5,
    };
    assert_eq!(dns(&[&flags[..], &["--dns-service=a/b", "--dns-limit=5"]].concat()), Some(given));
    let file = file("dns: off");
    assert_eq!(dns(&["--config", file.path().to_str().unwrap()]), None);
    let error = args(&["--dns", "yes"]).resolve().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("write off or kernel"), "{error}");
    for (flag, value) in [
        ("--dns-deny", "never"),
        ("--dns-zone", "a..b"),
        ("--dns-service", "kube-dns"),
        ("--dns-ttl", "86400"),
    ] {
        let error = args(&["--dns=kernel", flag, value]).resolve();
        let error = error.map(|config| config.dns).unwrap_err().to_string();
        assert!(error.starts_with(flag) && error.contains("write"), "{error}");
    }
}

#[test]
fn dns_full_is_refused_and_the_sentence_says_what_to_use() {
    let error = args(&["--dns=full"]).resolve().map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--dns: the agent has no resolver any more: write kernel; names that the kernel does not \
         answer pass to the cluster's DNS service as any packet"
    );
}

#[test]
fn flags_of_the_resolver_are_accepted_and_named_as_without_effect() {
    let file = file("dns-upstream: [10.0.0.1, 10.0.0.2]");
    let path = file.path().to_str().unwrap();
    let config = args(&["--dns-port=10053", "--config", path]).resolve().unwrap();
    let subjects: Vec<_> = config.warnings.iter().map(|warning| &*warning.subject).collect();
    assert_eq!(subjects, ["--dns-port", &format!("dns-upstream in {path}")]);
    assert!(config.warnings.iter().all(|warning| warning.message.contains("no effect")));
    assert_eq!(args(&["--dns=kernel"]).resolve().unwrap().warnings, []);
}

#[test]
fn a_flag_counts_more_than_a_variable_and_that_more_than_the_file() {
    let file = file("log-level: error\nlog-format: json\nnode-name: from-file");
    let mut args = args(&["--log-level", "debug", "--config", file.path().to_str().unwrap()]);
    let variable = (Origin::Env("SHUNT_NODE_NAME".to_owned()), "from-env".to_owned());
    args.given.insert("node-name", variable);
    let config = args.resolve().unwrap();
    assert_eq!(config.log_level, tracing::Level::DEBUG);
    assert_eq!(config.node_name, "from-env");
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn a_global_flag_of_the_same_name_is_the_same_flag() {
    #[derive(Parser)]
    struct Outer {
        #[arg(long, global = true, default_value = BPFFS_ROOT)]
        bpffs_root: PathBuf,
        #[command(subcommand)]
        command: Inner,
    }
    #[derive(clap::Subcommand)]
    enum Inner {
        Agent(AgentArgs),
    }
    for flags in [["shunt", "agent", "--bpffs-root=/b"], ["shunt", "--bpffs-root=/b", "agent"]] {
        let Outer { bpffs_root, command: Inner::Agent(args) } =
            Outer::try_parse_from(flags).unwrap();
        assert_eq!(bpffs_root, args.resolve().unwrap().bpffs_root);
        assert_eq!(bpffs_root, Path::new("/b"));
    }
}

#[test]
fn every_flag_has_its_variable_and_help() {
    for arg in Cli::command().get_arguments() {
        let name = arg.get_long().unwrap();
        let variable = format!("SHUNT_{}", name.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env().unwrap(), &*variable);
        assert!(arg.get_help().is_some_and(|help| help.to_string().len() > 20), "{name}");
    }
}

#[test]
fn a_wrong_value_is_refused_with_what_would_be_right() {
    for (flags, yaml, expected) in [
        (&["--source", "etcd"][..], "", "--source: \"etcd\" is no source: write kube or files"),
        (&["--source", "files"], "", "--source files needs a folder: add --manifests DIR"),
        (
            &["--manifests", "m"],
            "",
            "--manifests is not for --source kube: leave it out, or choose the other source",
        ),
        (
            &["--source", "files", "--manifests", "m"],
            "kubeconfig: k",
            "kubeconfig in FILE is not for --source files: leave it out, or choose the other source",
        ),
        (
            &[],
            "node-port-range: 65000-61000",
            "node-port-range in FILE: \"65000-61000\" is no port range: \
             write FIRST-LAST within 1-65535, lowest first",
        ),
        (
            &["--masquerade-bit", "32"],
            "",
            "--masquerade-bit: \"32\" is no bit of a packet mark: write 0 to 31",
        ),
        (
            &["--socket-path", "pods"],
            "",
            "--socket-path: \"pods\" is no choice of sockets: write auto, all, host or off",
        ),
        (
            &["--min-sync-period", "50"],
            "",
            "--min-sync-period: \"50\" is no duration: \
             write a number and ms, s, m or h, such as 50ms or 1m30s",
        ),
        (
            &["--drift-check-period", "10ms"],
            "",
            "--drift-check-period: \"10ms\" is too often: write 1s or more",
        ),
        (
            &["--healthz-bind-address", "10256"],
            "",
            "--healthz-bind-address: \"10256\" is no address with a port: \
             write it like 0.0.0.0:10256 or [::]:10256",
        ),
        (
            &["--cluster-cidr", "10.0.0.0/8,10.244/16"],
            "",
            "--cluster-cidr: \"10.244/16\" is no network: \
             write ADDRESS/LENGTH, such as 10.244.0.0/16",
        ),
        (
            &["--node-port-addresses", "secondary"],
            "",
            "--node-port-addresses: \"secondary\" is no network: \
             write ADDRESS/LENGTH, such as 10.244.0.0/16, or primary alone",
        ),
        (
            &["--devices", "auto,eth0"],
            "",
            "--devices: \"auto,eth0\" mixes auto and names: write one or the other",
        ),
        (
            &["--bpffs-root", "bpf"],
            "",
            "--bpffs-root: \"bpf\" is a relative path: write one that begins with /",
        ),
        (
            &["--log-level", "loud"],
            "",
            "--log-level: \"loud\" is no log level: write error, warn, info, debug or trace",
        ),
        (
            &["--node-name", "a b"],
            "",
            "--node-name: \"a b\" is no node name: \
             write the name that `kubectl get nodes` shows",
        ),
        (
            &[],
            "nodePortAddress: []",
            "\"nodePortAddress\" in FILE is no setting: did you mean node-port-addresses?",
        ),
        (&[], "config: x", "\"config\" in FILE is no setting: did you mean kubeconfig?"),
        (
            &[],
            "devices: {a: b}",
            "devices in FILE: the value has parts of its own: write one value, or a list",
        ),
        (&[], "- a list", "the configuration file FILE is no YAML mapping of settings"),
        (
            &[],
            "log-level: info\nlog-level: warn",
            "the configuration file FILE is no YAML mapping of settings",
        ),
    ] {
        assert_eq!(refusal(flags, yaml), expected);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = args(&["--config", "/nowhere/shunt.yaml"]).resolve().unwrap_err();
    assert_eq!(error.to_string(), "the configuration file /nowhere/shunt.yaml cannot be read");
}

#[test]
fn durations_are_read_as_go_writes_them() {
    for (text, milliseconds) in [
        ("0", Some(0)),
        ("0s", Some(0)),
        ("50ms", Some(50)),
        ("1m30s", Some(90_000)),
        ("2h", Some(7_200_000)),
        ("", None),
        ("s", None),
        ("1", None),
        ("1d", None),
        ("-1s", None),
        ("1s1", None),
        ("99999999999999999999s", None),
        ("18446744073709551615h", None),
    ] {
        let expected = milliseconds.map(Duration::from_millis);
        assert_eq!(value::duration(text).ok(), expected, "{text:?}");
    }
}
