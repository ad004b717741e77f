//! How to look around in the cluster of the demo while it stays up.
//!
//! Gives commands to paste into a root shell; each of them works as printed.

use super::web::{NODE_PORT, VIPS};
use super::world::World;
use crate::machine::Machine;
use crate::program;
use anyhow::Result;
use std::fmt::Write as _;

/// The commands.
pub(super) async fn how_to_look_around(world: &World) -> Result<String> {
    let lab = &world.cluster.lab;
    let node = lab.node(0);
    let (worker, shunt) = (program::find("lab-worker")?, program::find("shunt")?);
    let mut text =
        String::from("\n  The cluster stays up until Ctrl-C. In another shell, as root:\n");
    let mut add = |title: &str, commands: &[String]| {
        write!(text, "\n  # {title}\n").expect("a String takes everything");
        for command in commands {
            writeln!(text, "  {command}").expect("a String takes everything");
        }
    };

    // A process belongs to a machine by its namespace and its cgroup: the socket path sees both.
    let enter = |machine: &Machine| {
        format!("{} enter {} {}", worker.display(), netns(machine), machine.cgroup().display())
    };
    let ask = |machine: &Machine, to: &str| {
        let (host, port) = to.rsplit_once(':').unwrap_or((to, "80"));
        let host = host.trim_matches(['[', ']']);
        let script = format!("exec 3<>/dev/tcp/{host}/{port}; echo hello >&3; head -n1 <&3");
        format!("{} bash -c '{script}'", enter(machine))
    };
    add(
        "a request from the client pod; the answer: who answers, whom it sees, what you said",
        &[ask(&world.client, VIPS[0]), ask(&world.client, VIPS[1])],
    );
    let node_port = node.addrs().at(NODE_PORT)[0].to_string();
    add("a request from outside, to a NodePort", &[ask(&world.outsider, &node_port)]);
    let machines: [&Machine; 4] = [node, lab.node(1), &world.client, &world.outsider];
    let machines = machines.map(|machine| {
        format!("nsenter --net={} ip -brief addr  # {}", netns(machine), machine.name())
    });
    add("the network of a node, of the client pod, of the client outside", &machines);

    let view = format!(
        "--bpffs-root {} --control-socket {}",
        node.bpffs_root().display(),
        node.control_socket().display()
    );
    let commands = ["status", "services", "backends", "explain 10.96.0.10:80"];
    add(
        "what Shunt says on node-1",
        &commands.map(|command| format!("{} {command} {view}", shunt.display())),
    );
    let kubeconfig = lab.scratch().join("kubeconfig").display().to_string();
    let get = ["--kubeconfig", &kubeconfig, "get", "services,endpointslices"];
    // kubectl may be absent, or too old or too new for this API.
    if node.exec("kubectl", &get).await.is_ok_and(|output| output.status == Some(0)) {
        let kubectl = |does: &str| {
            format!("nsenter --net={} kubectl --kubeconfig {kubeconfig} {does}", netns(node))
        };
        add("the objects", &[kubectl("get services,endpointslices")]);
        add(
            "take the endpoints away, and ask again: refused at once",
            &[kubectl("delete endpointslices web-ipv4 web-ipv6")],
        );
    }
    Ok(text)
}

fn netns(machine: &Machine) -> String {
    format!("/proc/{}/ns/net", machine.pid())
}
