//! The settings of the agent: one table, from which the flags, the environment variables, the
//! keys of the configuration file, the defaults and the help all come.
//!
//! What a value means is in `value`; which of several values counts is in the parent.

use clap::builder::ValueParser;

/// A setting of the agent.
#[derive(Debug)]
pub(super) struct Setting {
    /// The flag without its dashes, which is also the key in the configuration file.
    pub(super) name: &'static str,
    /// What stands for the value in the help.
    pub(super) value: &'static str,
    /// The default; `None` where there is none, or where it depends on the machine.
    pub(super) default: Option<&'static str>,
    /// What it does, in units, for the help.
    pub(super) help: &'static str,
}

impl Setting {
    /// The environment variable.
    pub(super) fn env(&self) -> String {
        format!("SHUNT_{}", self.id().to_uppercase())
    }

    /// The name among clap's arguments: the one that a derived field would have, so that a global
    /// flag of the command line with the same name is the same argument.
    pub(super) fn id(&self) -> String {
        self.name.replace('-', "_")
    }

    /// What clap takes the text for: also the type that a derived field would have.
    pub(super) fn parser(&self) -> ValueParser {
        match self.value {
            "PATH" | "DIR" | "FILE" => ValueParser::path_buf(),
            _ => ValueParser::string(),
        }
    }
}

/// The default of `--bpffs-root`, for the agent and for the command line.
pub const BPFFS_ROOT: &str = "/sys/fs/bpf";
/// The default of `--control-socket`, for the agent and for the command line.
pub const CONTROL_SOCKET: &str = "/run/shunt/agent.sock";

/// Every setting, in the order of the help.
pub(super) const SETTINGS: [Setting; 43] = [
    Setting {
        name: "source",
        value: "kube|files",
        default: Some("kube"),
        help: "Where Services, EndpointSlices and the Node come from: the Kubernetes API, or a \
               folder of manifests",
    },
    Setting {
        name: "kubeconfig",
        value: "FILE",
        default: None,
        help: "How to reach the Kubernetes API; without it $KUBECONFIG, else the pod's service \
               account. Its server must be the real address, not the ClusterIP that the agent \
               itself serves",
    },
    Setting {
        name: "manifests",
        value: "DIR",
        default: None,
        help: "The folder for `--source files`; it is watched, edits apply live",
    },
    Setting {
        name: "node-name",
        value: "NAME",
        default: None,
        help: "The name of this node's Node object [default: the host name, in lower case]",
    },
    Setting {
        name: "cgroup-root",
        value: "PATH",
        default: None,
        help: "The cgroup v2 directory whose sockets are served [default: where cgroup2 is mounted]",
    },
    Setting {
        name: "bpffs-root",
        value: "PATH",
        default: Some(BPFFS_ROOT),
        help: "The BPF file system; maps and links are pinned in `shunt/` below it",
    },
    Setting {
        name: "socket-path",
        value: "auto|all|host|off",
        default: Some("auto"),
        help: "Whose TCP sockets are given a backend when they connect; all others are served as \
               their packets come in. auto: those of the node and of pods, but for pods whose \
               connections somebody redirects or emulates (a sidecar, a virtual machine), and, with \
               `--source files`, which says nothing of pods, none of them; all; host: the node's \
               own; off",
    },
    Setting {
        name: "devices",
        value: "LIST",
        default: Some("auto"),
        help: "The node's own devices on which the packet path runs: names or patterns with * and \
               ?, separated by commas; `auto` takes those with a default route or a node address",
    },
    Setting {
        name: "pod-devices",
        value: "GLOBS",
        default: Some("veth*,cali*,lxc*,eni*,azv*,gke*"),
        help: "The node's side of the pods' devices, by name: patterns with * and ?, separated by \
               commas",
    },
    Setting {
        name: "cluster-cidr",
        value: "CIDRS",
        default: None,
        help: "The addresses of the cluster's pods, separated by commas; what comes from elsewhere \
               is from outside",
    },
    Setting {
        name: "detect-local-mode",
        value: "MODE",
        default: Some("ClusterCIDR"),
        help: "By what a pod is told, which reaches all endpoints under `externalTrafficPolicy: \
               Local`: an address in --cluster-cidr (ClusterCIDR) or in the Node's podCIDRs \
               (NodeCIDR), the bridge it comes by (BridgeInterface) or an interface \
               (InterfaceNamePrefix); in each mode also those behind --pod-devices",
    },
    Setting {
        name: "pod-bridge-interface",
        value: "NAME",
        default: None,
        help: "The CNI's bridge, for `--detect-local-mode BridgeInterface`; its ports to pods are \
               pod devices",
    },
    Setting {
        name: "pod-interface-name-prefix",
        value: "PREFIX",
        default: None,
        help: "How the names of pods' interfaces begin, for `--detect-local-mode \
               InterfaceNamePrefix`; those that lead to pods are pod devices",
    },
    Setting {
        name: "node-port-addresses",
        value: "primary|CIDRS",
        default: Some("primary"),
        help: "Where NodePorts are reached: the node's InternalIP of each family, or its addresses \
               inside these networks, separated by commas",
    },
    Setting {
        name: "node-port-range",
        value: "FIRST-LAST",
        default: Some("30000-32767"),
        help: "The ports that the API server gives to NodePorts; a warning names others",
    },
    Setting {
        name: "masquerade-bit",
        value: "BIT",
        default: Some("14"),
        help: "The bit of the packet mark, 0 to 31, by which netfilter is told to hide a client; as \
               kube-proxy's --iptables-masquerade-bit",
    },
    Setting {
        name: "snat-port-range",
        value: "FIRST-LAST",
        default: None,
        help: "Without effect, and will go: the kernel chooses the ports of hidden clients",
    },
    Setting {
        name: "masquerade-all",
        value: "true|false",
        default: Some("false"),
        help: "Whether backends of ClusterIPs see the node's address instead of the client's, \
               whoever asks; pods are then served by the packet path there",
    },
    Setting {
        name: "external-ips",
        value: "true|false",
        default: Some("true"),
        help: "Whether `spec.externalIPs` are served; whoever may write a Service can claim any \
               address with them (CVE-2020-8554)",
    },
    Setting {
        name: "conntrack-max-per-core",
        value: "NUMBER",
        default: Some("32768"),
        help: "How many entries conntrack can hold for each CPU, as with kube-proxy, up to 1048576 in all; only ever raised, and 0 leaves it",
    },
    Setting {
        name: "conntrack-min",
        value: "NUMBER",
        default: Some("131072"),
        help: "How many entries conntrack can hold at least, whatever --conntrack-max-per-core says",
    },
    Setting {
        name: "conntrack-tcp-timeout-established",
        value: "DURATION",
        default: Some("24h"),
        help: "How long conntrack remembers an idle TCP connection; 0 leaves the kernel's time",
    },
    Setting {
        name: "conntrack-tcp-timeout-close-wait",
        value: "DURATION",
        default: Some("1h"),
        help: "How long conntrack remembers a TCP connection that one end has closed; 0 leaves the kernel's time",
    },
    Setting {
        name: "conntrack-tcp-be-liberal",
        value: "true|false",
        default: Some("false"),
        help: "Whether conntrack takes TCP packets outside the window for valid",
    },
    Setting {
        name: "conntrack-udp-timeout",
        value: "DURATION",
        default: Some("0"),
        help: "How long conntrack remembers a UDP flow without an answer; 0 leaves the kernel's time",
    },
    Setting {
        name: "conntrack-udp-timeout-stream",
        value: "DURATION",
        default: Some("0"),
        help: "How long conntrack remembers a UDP flow that was answered; 0 leaves the kernel's time",
    },
    Setting {
        name: "sysctl-root",
        value: "PATH",
        default: Some("/proc/sys"),
        help: "Where the kernel's settings are, for those of conntrack; a container's own /proc/sys is read-only",
    },
    Setting {
        name: "dns",
        value: "off|kernel",
        default: Some("off"),
        help: "Who answers the cluster's names on this node: its DNS service alone; or programs on \
               the pods' devices, and the service what they pass",
    },
    Setting {
        name: "dns-deny",
        value: "auto|on|off|shadow",
        default: Some("auto"),
        help: "Whether the node says that a name does not exist: if CoreDNS's ConfigMap shows that \
               nobody else may know it, always, never, or never but counting when it would",
    },
    Setting {
        name: "dns-zone",
        value: "ZONE",
        default: Some("cluster.local"),
        help: "The cluster's zone, the kubelet's clusterDomain",
    },
    Setting {
        name: "dns-service",
        value: "NAMESPACE/NAME",
        default: Some("kube-system/kube-dns"),
        help: "The cluster's DNS service, to whose addresses the pods send their queries",
    },
    Setting {
        name: "dns-ttl",
        value: "SECONDS",
        default: None,
        help: "How long answers may be kept [default: what the Corefile says, or else 30]",
    },
    Setting {
        name: "dns-limit",
        value: "RATE",
        default: Some("20000"),
        help: "How many answers a second a pod has from the kernel; what it asks beyond goes to the \
               DNS service. 0 sets no limit",
    },
    Setting {
        name: "dns-port",
        value: "PORT",
        default: None,
        help: "Without effect: the agent has no resolver any more",
    },
    Setting {
        name: "dns-upstream",
        value: "LIST",
        default: None,
        help: "Without effect: the agent has no resolver any more",
    },
    Setting {
        name: "min-sync-period",
        value: "DURATION",
        default: Some("50ms"),
        help: "The least time between two writes to the kernel while changes keep coming; a change \
               after a pause is written at once",
    },
    Setting {
        name: "drift-check-period",
        value: "DURATION",
        default: Some("1m"),
        help: "How often maps and links are compared with what they should be, and repaired; at \
               least 1s",
    },
    Setting {
        name: "healthz-bind-address",
        value: "IP:PORT",
        default: Some("[::]:10256"),
        help: "Where /healthz and /livez are served; [::] are all addresses of both families, or of \
               IPv4 where the kernel has no IPv6, and 0.0.0.0 those of IPv4 alone",
    },
    Setting {
        name: "metrics-bind-address",
        value: "IP:PORT",
        default: Some("127.0.0.1:10249"),
        help: "Where /metrics is served",
    },
    Setting {
        name: "control-socket",
        value: "PATH",
        default: Some(CONTROL_SOCKET),
        help: "The socket on which the agent answers the command line",
    },
    Setting {
        name: "log-format",
        value: "text|json",
        default: Some("text"),
        help: "How a log line is written",
    },
    Setting {
        name: "log-level",
        value: "LEVEL",
        default: Some("info"),
        help: "The least important line that is logged: error, warn, info, debug or trace",
    },
    Setting {
        name: CONFIG,
        value: "FILE",
        default: None,
        help: "A YAML file with any of these settings, each under its name without the dashes; a \
               flag or an environment variable counts more",
    },
];

/// The settings of the version before that have no effect any more: accepted for one version, and
/// named in a warning.
pub(super) const WITHOUT_EFFECT: [&str; 3] = ["dns-port", "dns-upstream", "snat-port-range"];

/// The setting that names the configuration file; the only one that the file cannot hold.
pub(super) const CONFIG: &str = "config";

/// The names that a configuration file may hold.
pub(super) fn file_keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.name).filter(|&name| name != CONFIG)
}
