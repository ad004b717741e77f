//! Objects as YAML in, what the model holds of them out.

use super::*;

fn service(yaml: &str) -> Option<Service> {
    Converter::default().service(&serde_yaml_ng::from_str(yaml).unwrap())
}

/// A Service whose spec is `spec`, in YAML's flow style.
fn spec(spec: &str) -> Service {
    service(&format!("{{metadata: {{name: web, namespace: shop}}, spec: {spec}}}")).unwrap()
}

fn slice(yaml: &str) -> Option<Slice> {
    Converter::default().slice(&serde_yaml_ng::from_str(yaml).unwrap())
}

/// A slice of Service `web` with the rest of its fields in YAML's flow style.
fn fields(fields: &str) -> Slice {
    let labels = "{kubernetes.io/service-name: web}";
    slice(&format!("{{metadata: {{name: web-1, namespace: shop, labels: {labels}}}, {fields}}}"))
        .unwrap()
}

fn addrs(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn endpoint_addrs(slice: &Slice) -> Vec<IpAddr> {
    slice.endpoints.iter().map(|endpoint| endpoint.addr).collect()
}

/// That `warnings` is one sentence for each of `parts`, and holds it.
#[track_caller]
fn check_warnings(warnings: &[String], parts: &[&str]) {
    assert_eq!(warnings.len(), parts.len(), "{warnings:?}");
    for (warning, part) in warnings.iter().zip(parts) {
        assert!(warning.contains(part), "{warning:?} does not name {part:?}");
    }
}

#[test]
fn a_service_is_read_whole() {
    let service = service(
        "
metadata: {name: web, namespace: shop, creationTimestamp: '2025-01-02T03:04:05Z'}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, 'fd00:10:96::7']
  ipFamilies: [IPv4, IPv6]
  externalIPs: [192.0.2.8]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 31000
  loadBalancerSourceRanges: ['  198.51.100.7/24 ', 'fd00::/8']
  sessionAffinity: ClientIP
  ports:
  - {name: http, port: 80, nodePort: 30080, targetPort: web}
  - {name: dns, port: 53, protocol: UDP}
  - {name: sig, port: 99, protocol: SCTP}
status:
  loadBalancer:
    ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP},
              {ip: 203.0.113.3, ipMode: Proxy}, {hostname: lb.example}]
",
    )
    .unwrap();
    let port = |name: &str, proto, number, node_port: Option<u16>| ServicePort {
        name: name.into(),
        proto,
        port: Port::new(number),
        node_port: node_port.map(Port::new),
    };
    let expected = Service {
        name: ObjectName { namespace: "shop".into(), name: "web".into() },
        created: 1_735_787_045,
        kind: ServiceType::LoadBalancer,
        headless: false,
        other_proxy: false,
        cluster_ips: addrs(&["10.96.0.7", "fd00:10:96::7"]),
        external_ips: addrs(&["192.0.2.8"]),
        load_balancer_ips: addrs(&["203.0.113.1", "203.0.113.2"]),
        ports: vec![
            port("http", Proto::TCP, 80, Some(30080)),
            port("dns", Proto::UDP, 53, None),
            port("sig", Proto::SCTP, 99, None),
        ],
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        affinity_seconds: Some(10_800),
        source_ranges: vec!["198.51.100.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()],
        health_check_node_port: Some(31000),
        external_name: None,
        warnings: Vec::new(),
    };
    assert_eq!(service, expected);
}

#[test]
fn a_service_of_another_proxy_is_not_ours_whatever_the_label_says() {
    for value in ["other", "''"] {
        let labels = format!("{{service.kubernetes.io/service-proxy-name: {value}}}");
        let yaml = format!("{{metadata: {{name: web, labels: {labels}}}}}");
        assert_eq!(service(&yaml), None);
    }
}

#[test]
fn each_family_takes_its_cluster_ip() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("{clusterIP: 10.0.0.1}", &["10.0.0.1"], &[]),
        ("{clusterIP: 'fd00::1'}", &["fd00::1"], &[]),
        ("{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1']}", &["10.0.0.1", "fd00::1"], &[]),
        ("{clusterIPs: [10.0.0.1], ipFamilies: [IPv6]}", &[], &["10.0.0.1"]),
        ("{clusterIPs: [10.0.0.1, 10.0.0.2]}", &["10.0.0.1"], &["10.0.0.2"]),
        ("{clusterIPs: [10.0.0.1, nonsense]}", &["10.0.0.1"], &["nonsense"]),
        ("{clusterIP: 010.000.0.1}", &["10.0.0.1"], &[]),
        ("{clusterIP: '::ffff:10.0.0.1'}", &["10.0.0.1"], &[]),
        ("{clusterIP: None}", &[], &[]),
        ("{clusterIP: None, clusterIPs: [None]}", &[], &[]),
        ("{}", &[], &["no clusterIP"]),
        ("{clusterIP: '', clusterIPs: ['']}", &[], &["no clusterIP"]),
    ];
    for (yaml, expected, warnings) in cases {
        let service = spec(yaml);
        assert_eq!(service.cluster_ips, addrs(expected), "{yaml}");
        check_warnings(&service.warnings, warnings);
    }
}

#[test]
fn a_service_without_cluster_ip_has_no_address_at_all() {
    for (kind, ip) in [("ExternalName", "10.0.0.1"), ("ClusterIP", "None")] {
        let service = spec(&format!(
            "{{type: {kind}, clusterIP: {ip}, externalIPs: [192.0.2.1], externalName: db.example}}"
        ));
        assert_eq!((service.cluster_ips, service.external_ips), (vec![], vec![]));
        assert_eq!(service.external_name.is_some(), kind == "ExternalName");
    }
}

#[test]
fn an_external_ip_that_nothing_can_use_is_named_and_the_others_stay() {
    let bad =
        ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "fe80::1", "ff02::1", "::1", "x"];
    let ips: Vec<_> = bad.iter().map(|ip| format!("'{ip}'")).collect();
    let service = spec(&format!(
        "{{clusterIP: 10.0.0.1, externalIPs: [192.0.2.1, {}, 'fd00::2']}}",
        ips.join(", ")
    ));
    assert_eq!(service.external_ips, addrs(&["192.0.2.1", "fd00::2"]));
    check_warnings(&service.warnings, &bad);
}

#[test]
fn the_external_policy_counts_only_where_there_is_an_outside() {
    let cases = [
        ("{type: NodePort, clusterIP: 10.0.0.1, externalTrafficPolicy: Local}", true),
        ("{clusterIP: 10.0.0.1, externalIPs: [192.0.2.1], externalTrafficPolicy: Local}", true),
        ("{clusterIP: 10.0.0.1, externalTrafficPolicy: Local}", false),
        ("{type: NodePort, clusterIP: 10.0.0.1, externalTrafficPolicy: Cluster}", false),
    ];
    for (yaml, local) in cases {
        assert_eq!(spec(yaml).external_policy == TrafficPolicy::Local, local, "{yaml}");
    }
}

#[test]
fn only_a_load_balancer_with_policy_local_has_a_health_check_port() {
    for (kind, policy, expected) in [
        ("LoadBalancer", "Local", Some(31000)),
        ("LoadBalancer", "Cluster", None),
        ("NodePort", "Local", None),
    ] {
        let service = spec(&format!(
            "{{type: {kind}, clusterIP: 10.0.0.1, healthCheckNodePort: 31000, \
             externalTrafficPolicy: {policy}}}"
        ));
        assert_eq!(service.health_check_node_port, expected);
    }
}

#[test]
fn affinity_has_a_timeout_between_one_second_and_a_day() {
    let seconds = |config: &str| {
        spec(&format!("{{clusterIP: 10.0.0.1, sessionAffinity: ClientIP, {config}}}"))
    };
    for (timeout, expected, warnings) in
        [("7", 7, 0), ("0", 1, 1), ("-5", 1, 1), ("90000", 86_400, 1)]
    {
        let service =
            seconds(&format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {timeout}}}}}"));
        assert_eq!(service.affinity_seconds, Some(expected));
        assert_eq!(service.warnings.len(), warnings);
    }
    assert_eq!(seconds("").affinity_seconds, Some(10_800));
    assert_eq!(spec("{clusterIP: 10.0.0.1, sessionAffinity: None}").affinity_seconds, None);
}

#[test]
fn source_ranges_that_cannot_be_read_never_open_the_service() {
    let ranges =
        |list: &str| spec(&format!("{{clusterIP: 10.0.0.1, loadBalancerSourceRanges: {list}}}"));
    let one_bad = ranges("[10.0.0.0/8, nonsense, 10.0.0.0/40]");
    assert_eq!(one_bad.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    check_warnings(&one_bad.warnings, &["nonsense", "10.0.0.0/40"]);
    let all_bad = ranges("[nonsense]");
    assert_eq!(all_bad.source_ranges, ["0.0.0.0/32".parse().unwrap(), "::/128".parse().unwrap()]);
    assert_eq!(ranges("[192.0.2.1]").source_ranges, ["192.0.2.1/32".parse().unwrap()]);
    assert_eq!(ranges("[]").source_ranges, []);
}

#[test]
fn a_port_that_cannot_be_is_left_out() {
    let service = spec(
        "{clusterIP: 10.0.0.1, ports: [{port: 0}, {port: 70000}, {port: 80, protocol: DCCP}, \
         {port: 443, nodePort: 70000}]}",
    );
    assert_eq!(service.ports.len(), 1);
    assert_eq!((service.ports[0].port, service.ports[0].node_port), (Port::new(443), None));
    check_warnings(&service.warnings, &["port 0", "port 70000", "DCCP", "nodePort 70000"]);
}

#[test]
fn a_slice_is_read_whole() {
    let slice = slice(
        "
metadata:
  name: web-abc
  namespace: shop
  labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: ''}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2025-01-02T03:04:05.250Z'}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: '', port: 53, protocol: UDP}]
endpoints:
- addresses: [10.244.1.5, 10.244.1.6]
  conditions: {ready: false, serving: true, terminating: true}
  nodeName: node-a
  hostname: web-0
  zone: z1
  hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: node-a}]}
- addresses: [10.244.1.7]
- addresses: [10.244.1.8]
  conditions: {ready: false, serving: false}
",
    )
    .unwrap();
    let bare = |addr: &str, up| Endpoint {
        addr: addr.parse().unwrap(),
        conditions: Conditions { ready: up, serving: up, terminating: false },
        placement: Arc::default(),
        hostname: None,
    };
    let expected = Slice {
        name: ObjectName { namespace: "shop".into(), name: "web-abc".into() },
        service: ObjectName { namespace: "shop".into(), name: "web".into() },
        headless: true,
        ports: vec![
            SlicePort { name: "http".into(), proto: Proto::TCP, port: Port::new(8080) },
            SlicePort { name: "".into(), proto: Proto::UDP, port: Port::new(53) },
        ],
        endpoints: vec![
            Endpoint {
                conditions: Conditions { ready: false, serving: true, terminating: true },
                placement: Arc::new(Placement {
                    node: Some("node-a".into()),
                    zone_hints: ["z1".into(), "z2".into()].into(),
                    node_hints: ["node-a".into()].into(),
                }),
                hostname: Some("web-0".into()),
                ..bare("10.244.1.5", true)
            },
            bare("10.244.1.7", true),
            bare("10.244.1.8", false),
        ],
        triggered: Some(1_735_787_045_250),
        warnings: Vec::new(),
    };
    assert_eq!(slice, expected);
}

#[test]
fn a_slice_of_no_service_or_of_dns_names_is_not_ours() {
    let with = |labels: &str, kind: &str| {
        slice(&format!("{{metadata: {{name: s, labels: {labels}}}, addressType: {kind}}}"))
    };
    assert_eq!(with("{}", "IPv4"), None);
    assert_eq!(with("{kubernetes.io/service-name: ''}", "IPv4"), None);
    assert_eq!(with("{kubernetes.io/service-name: web}", "FQDN"), None);
    assert!(with("{kubernetes.io/service-name: web}", "IPv6").is_some());
}

#[test]
fn an_impossible_endpoint_is_named_and_the_others_stay() {
    let slice = fields(
        "addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}, {addresses: [127.0.0.1]}, \
         {addresses: ['fd00::1']}, {addresses: []}, {addresses: [10.0.0.256]}, \
         {addresses: [10.0.0.2]}]",
    );
    assert_eq!(endpoint_addrs(&slice), addrs(&["10.0.0.1", "10.0.0.2"]));
    check_warnings(&slice.warnings, &["127.0.0.1", "fd00::1", "no address", "10.0.0.256"]);
    let v6 = fields("addressType: IPv6, endpoints: [{addresses: ['fd00::1']}]");
    assert_eq!(endpoint_addrs(&v6), addrs(&["fd00::1"]));
}

#[test]
fn a_slice_port_without_number_is_skipped_alone() {
    let slice = fields(
        "addressType: IPv4, ports: [{name: a}, {name: b, port: 0}, {port: 80}, \
         {name: c, port: 70000}, {name: d, port: 81, protocol: DCCP}]",
    );
    let names: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(names, [("", Port::new(80))]);
    check_warnings(&slice.warnings, &["70000", "DCCP"]);
}

#[test]
fn repeated_parts_are_stored_once() {
    let mut converter = Converter::default();
    let object = serde_yaml_ng::from_str(
        "{metadata: {name: s, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, \
         endpoints: [{addresses: [10.0.0.1], nodeName: node-a, hints: {forZones: [{name: z}]}}]}",
    )
    .unwrap();
    let (one, two) = (converter.slice(&object).unwrap(), converter.slice(&object).unwrap());
    assert!(Arc::ptr_eq(&one.endpoints[0].placement, &two.endpoints[0].placement));
    assert!(Arc::ptr_eq(&one.service.name, &two.service.name));
}

#[test]
fn a_node_is_read_whole() {
    let yaml = "
metadata:
  name: node-a
  labels: {topology.kubernetes.io/zone: z1}
  deletionTimestamp: '2025-01-02T03:04:05Z'
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, 'fd00:244:1::/64']
  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]
status:
  addresses: [{type: Hostname, address: node-a}, {type: InternalIP, address: 192.168.0.1},
              {type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: 'fd00::1'}]
";
    let node = Converter::default().node(&serde_yaml_ng::from_str(yaml).unwrap());
    let expected = Node {
        name: "node-a".into(),
        zone: Some("z1".into()),
        internal_ips: addrs(&["192.168.0.1", "fd00::1"]),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:1::/64".parse().unwrap()],
        deleting: true,
        to_be_deleted: true,
    };
    assert_eq!(node, expected);
    let bare = serde_yaml_ng::from_str("{metadata: {name: b}, spec: {podCIDR: 10.0.0.0/24}}");
    let bare = Converter::default().node(&bare.unwrap());
    assert_eq!(bare.pod_cidrs, ["10.0.0.0/24".parse().unwrap()]);
    assert_eq!((bare.zone, bare.deleting, bare.to_be_deleted), (None, false, false));
}

/// An annotation alone would let a pod speak for every other one of the node.
#[test]
fn a_static_pods_uid_is_believed_of_the_kubelets_mirror_alone() {
    let mirror = "
metadata:
  uid: 0a1b2c3d-0000-4000-8000-000000000001
  annotations:
    shunt.dev/socket-path: 'off'
    kubernetes.io/config.hash: 4f7ff36d4f6b1ea0b1b2ba5c5a3a4b0e
    kubernetes.io/config.mirror: 4f7ff36d4f6b1ea0b1b2ba5c5a3a4b0e
  ownerReferences: [{apiVersion: v1, kind: Node, name: node-a, uid: u, controller: true}]
spec: {nodeName: node-a, containers: []}
status: {phase: Running, startTime: '2026-01-01T00:00:00Z'}
";
    let uid = |yaml: &str| {
        let object = serde_yaml_ng::from_str(yaml).unwrap();
        Vec::from_iter(Converter::default().opted_out(&object).socket_path).remove(0)
    };
    assert_eq!(&*uid(mirror), "4f7ff36d4f6b1ea0b1b2ba5c5a3a4b0e");
    let forged = [
        ("config.mirror", "config.other"),
        ("config.hash: 4f7ff36d4f6b1ea0b1b2ba5c5a3a4b0e", "config.hash: s"),
        ("config.hash: 4f7ff36d", "config.hash: ../f36d"),
        ("kind: Node", "kind: ReplicaSet"),
        ("name: node-a,", "name: node-b,"),
        (", startTime: '2026-01-01T00:00:00Z'", ""),
    ];
    for (from, to) in forged {
        let forged = mirror.replace(from, to);
        assert_ne!(forged, mirror, "{from}");
        assert_eq!(&*uid(&forged), "0a1b2c3d-0000-4000-8000-000000000001", "{to}");
    }
}
