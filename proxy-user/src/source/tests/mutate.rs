//! Objects with every field that is read, and what goes wrong in them.

use serde_json::{Map, Value, json};
use std::env;

/// How many executions a fuzz test makes.
pub(crate) fn executions(default: u64) -> u64 {
    let asked = env::var("SHUNT_FUZZ").ok();
    asked.map_or(default, |text| text.parse().expect("SHUNT_FUZZ is a number of executions"))
}

/// Numbers that look random, the same ones for the same seed (xorshift*).
pub(crate) struct Random(u64);

impl Random {
    /// Those of execution number `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }

    /// One of `all`.
    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The kinds that are read.
pub(crate) const KINDS: [&str; 7] =
    ["Service", "EndpointSlice", "Node", "Pod", "ServiceCIDR", "Namespace", "ConfigMap"];

/// An object of `kind` with all fields that are read, and some that are not.
pub(crate) fn object(kind: &str, name: &str, version: u64) -> Value {
    let (api_version, rest) = match kind {
        "Service" => ("v1", service()),
        "EndpointSlice" => ("discovery.k8s.io/v1", slice()),
        "ServiceCIDR" => {
            ("networking.k8s.io/v1", json!({"spec": {"cidrs": ["10.96.0.0/12", "fd00:96::/112"]}}))
        }
        "Node" => ("v1", node()),
        "Pod" => ("v1", pod()),
        "ConfigMap" => ("v1", json!({"data": {"Corefile": ".:53 {\n}\n", "more": "x"}})),
        _ => ("v1", json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})),
    };
    let mut object = json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {
            "name": name, "namespace": "shop", "uid": "1-2-3", "generation": 7,
            "resourceVersion": version.to_string(),
            "creationTimestamp": "2025-01-02T03:04:05Z", "deletionTimestamp": null,
            "labels": {"kubernetes.io/service-name": "web", "topology.kubernetes.io/zone": "z"},
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2025-01-02T03:04:05.250Z",
                "shunt.dev/socket-path": "off", "shunt.dev/dns": "off",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "x"}],
            "managedFields": [{"manager": "kubectl", "time": null, "fieldsV1": {"f:spec": {}}}],
        },
    });
    if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
        object.extend(rest);
    }
    object
}

fn service() -> Value {
    json!({
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7", "fd00:10:96::7"], "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["192.0.2.8"], "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 31000,
            "loadBalancerSourceRanges": ["198.51.100.0/24"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}},
            "externalName": "db.example", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "targetPort": "web"},
                      {"name": "dns", "port": 53, "protocol": "UDP"}],
        },
        "status": {
            "conditions": [{"type": "X", "status": "True", "lastTransitionTime": null}],
            "loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}, {"hostname": "x"}]},
        },
    })
}

fn slice() -> Value {
    json!({
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
        "endpoints": [
            {"addresses": ["10.244.1.5"], "nodeName": "node-a", "hostname": "web-0", "zone": "z",
             "conditions": {"ready": true, "serving": true, "terminating": false},
             "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "node-a"}]},
             "targetRef": {"kind": "Pod", "name": "web-0"}},
            {"addresses": ["10.244.1.6"], "conditions": {}},
        ],
    })
}

fn node() -> Value {
    json!({
        "spec": {
            "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"],
            "taints": [{"key": "x", "effect": "NoSchedule", "timeAdded": null}],
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.168.0.1"}],
            "conditions": [{"type": "Ready", "lastHeartbeatTime": null}],
        },
    })
}

fn pod() -> Value {
    json!({
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "i"}]},
        "status": {
            "phase": "Running", "podIPs": [{"ip": "10.244.1.9"}], "startTime": null,
            "conditions": [{"type": "Ready", "lastTransitionTime": null}],
        },
    })
}

/// Changes one field of `object` somewhere in it: `null`, absent, of another type, unknown, huge.
pub(crate) fn mutate(object: &mut Value, random: &mut Random) {
    let mut at = object;
    // As deep as there is something, or to where chance stops.
    loop {
        let is_deep = match at {
            Value::Object(fields) => fields.values().any(is_container),
            Value::Array(items) => items.iter().any(is_container),
            _ => false,
        };
        if !is_deep || random.below(4) == 0 {
            break;
        }
        let inner: Vec<&mut Value> = match at {
            Value::Object(fields) => fields.values_mut().filter(|v| is_container(v)).collect(),
            Value::Array(items) => items.iter_mut().filter(|v| is_container(v)).collect(),
            _ => return,
        };
        let index = random.below(inner.len());
        let Some(next) = inner.into_iter().nth(index) else { return };
        at = next;
    }
    match at {
        Value::Object(fields) => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            match (random.below(8), keys.is_empty()) {
                (0, _) | (_, true) => drop(fields.insert("unknown".into(), strange(random))),
                (1, _) => drop(fields.remove(random.of(&keys))),
                _ => drop(fields.insert(random.of(&keys).clone(), strange(random))),
            }
        }
        Value::Array(items) => match (random.below(4), items.len()) {
            (0, _) | (_, 0) => items.push(strange(random)),
            (1, len) => drop(items.remove(random.below(len))),
            (_, len) => items[random.below(len)] = strange(random),
        },
        other => *other = strange(random),
    }
}

fn is_container(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

fn strange(random: &mut Random) -> Value {
    match random.below(16) {
        0..=2 => Value::Null,
        3 => json!(random.below(2) == 0),
        4 => json!(0),
        5 => json!(-1),
        6 => json!(65_536),
        7 => json!(u64::MAX),
        8 => json!(1.5e300),
        9 => json!(""),
        10 => json!("x".repeat(1 << random.below(15))),
        11 => json!("\u{0}\u{fffd}😀/..: "),
        12 => json!([]),
        13 => json!({}),
        14 => Value::Array(vec![Value::Null; random.below(300)]),
        _ => {
            let depth = random.below(150);
            (0..depth)
                .fold(json!({}), |inner, _| Value::Object(Map::from_iter([("a".into(), inner)])))
        }
    }
}

/// Changes bytes of `text` anywhere, or cuts it off.
pub(crate) fn damage(text: &mut Vec<u8>, random: &mut Random) {
    if text.is_empty() {
        return;
    }
    match random.below(4) {
        0 => text.truncate(random.below(text.len())),
        1 => drop(text.remove(random.below(text.len()))),
        2 => text.insert(random.below(text.len()), random.below(256) as u8),
        _ => {
            let at = random.below(text.len());
            text[at] = *random.of(b"\"{}[]:,0\\\n\xff ");
        }
    }
}
