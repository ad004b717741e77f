//! Rules of others, which see packets as clients sent them.

use crate::scene::{Path, Scene, answer, hearing, node_port, silent, sockets, vip};
use anyhow::{Result, ensure};
use lab::{Ask, Serve};

/// cilium/cilium#12781, projectcalico/calico#823: such are the preDNAT policies of Calico too.
#[tokio::test]
async fn rules_in_raw_prerouting_keep_outsiders_from_node_ports() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.publish(2, &[&scene.web[1]])?;
    scene.start(Path::Socket).await?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let node = scene.cluster.lab.node(0);
    let at_node = |number| sockets(node.addrs().at(node_port(number)));
    for number in [1, 2] {
        for ask in at_node(number) {
            answer("without the rule", &outsider, &ask).await?;
        }
    }
    node.nft(
        "table inet firewall { chain raw {
            type filter hook prerouting priority -300;
            iifname eth0 meta l4proto { tcp, udp } th dport 30000-32767 drop;
        }; }",
    )
    .await?;
    for number in [1, 2] {
        silent("with the rule", &outsider, at_node(number)).await?;
        for ask in at_node(number) {
            answer("pods come by other devices", &scene.client, &ask).await?;
        }
    }
    Ok(())
}

/// What raw rules leave untracked is not translated, as with kube-proxy: NodeLocal DNSCache and
/// operators of busy servers have such rules. Nobody else is touched by them.
#[tokio::test]
async fn what_is_not_tracked_is_left_alone() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start(Path::Socket).await?;
    let lab = &scene.cluster.lab;
    let (untracked, other) = (lab.add_client("untracked").await?, lab.add_client("other").await?);
    let node = lab.node(0);
    node.nft(&format!(
        "table inet untracked {{ chain raw {{
            type filter hook prerouting priority -300;
            ip saddr {} notrack
            ip6 saddr {} notrack
        }}; }}",
        untracked.ipv4(),
        untracked.ipv6()
    ))
    .await?;
    for ask in hearing(sockets(node.addrs().at(node_port(1)))) {
        answer("tracked", &other, &ask).await?;
        // Then the port is the node's own, at which nobody listens.
        let failure = untracked.ask(ask.clone()).await.expect_err("untracked");
        assert!(failure.refused_at_once(), "{ask:?}: {failure}");
    }
    Ok(())
}

/// aws/amazon-vpc-cni-k8s#75, cilium/cilium#12098: what pods send leaves by a second device, but
/// for the answers to NodePorts, which the CNI tells by a mark of their connection.
#[tokio::test]
async fn a_pod_behind_a_second_device_answers_node_ports_by_the_first() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    let outsider = scene.cluster.lab.add_client("outsider").await?;
    let eni = scene.cluster.lab.add_client("eni").await?;
    let (node, pod) = (scene.cluster.lab.node(0), scene.web[0].ipv4());
    let wire = format!(
        "ip link add eth1 type veth peer name eth1 netns {pid}; ip link set eth1 up;
         ip addr add 192.168.60.2/24 dev eth1;
         nsenter --net=/proc/{pid}/ns/net sh -ec \
             'ip link set eth1 up; ip addr add 192.168.60.1/24 dev eth1';
         ip rule add fwmark 0x80/0x80 lookup main pref 1024;
         ip rule add to 10.244.0.0/16 lookup main pref 512;
         ip rule add from {pod} lookup 2 pref 1536;
         ip route add default via 192.168.60.1 dev eth1 table 2",
        pid = eni.pid(),
    );
    let output = node.exec("sh", &["-ec", &wire]).await?;
    ensure!(output.status == Some(0), "{output:?}");
    node.nft(
        "table ip eni { chain mangle {
            type filter hook prerouting priority -150;
            iifname eth0 fib daddr type local ct mark set ct mark or 0x80
            iifname \"veth*\" meta mark set ct mark and 0x80;
        }; }",
    )
    .await?;
    scene.start_with(Path::Socket, &[("--devices", "auto")]).await?;
    let node = scene.cluster.lab.node(0);
    let to = node.addrs().at(node_port(1))[0];
    for ask in [Ask::tcp(to), Ask::udp(to), Ask::udp_unconnected(to)] {
        assert_eq!(answer("a NodePort", &outsider, &ask).await?.name, "web-0");
    }
    Ok(())
}

/// cilium/cilium#16583: a pod redirects its connections to a sidecar, which serves by what they
/// were for.
#[tokio::test]
async fn a_sidecar_sees_the_cluster_ip_where_pods_are_left_to_the_packet_path() -> Result<()> {
    let mut scene = Scene::routed().await?;
    scene.publish(1, &[&scene.web[0]])?;
    scene.start_with(Path::Socket, &[("--socket-path", "host")]).await?;
    let pod = &scene.client;
    pod.serve(Serve::tcp(15_001).named("sidecar")).await?;
    let rules = "table inet mesh { chain output {
        type nat hook output priority -100;
        ip daddr 10.96.0.1 tcp dport 80 redirect to :15001
        ip6 daddr fd00:96::1 tcp dport 80 redirect to :15001;
    }; }";
    let output = pod.exec("nft", &[rules]).await?;
    ensure!(output.status == Some(0), "{output:?}");
    for ask in hearing(sockets(vip(1))) {
        let name = answer("a sidecar", pod, &ask).await?.name;
        let is_tcp = ask.transport == lab::Transport::Tcp;
        assert_eq!(name, if is_tcp { "sidecar" } else { "web-0" }, "{ask:?}");
    }
    Ok(())
}
