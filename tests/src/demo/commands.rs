//! Step: the commands that an operator has.

use super::outcome::{Outcome, Transcript};
use super::refuse::EMPTY;
use super::web::{NODE_PORT, VIPS};
use super::world::World;
use anyhow::{Result, ensure};
use serde_json::Value;

/// What the status, the list of Services, and the explanations of three connections say.
pub(super) async fn commands(world: &mut World) -> Result<Outcome> {
    let node = world.cluster.lab.node(0);
    let pod = world.client.ipv4().to_string();
    let outside = world.outsider.ipv4().to_string();
    let node_port = format!("{}:{NODE_PORT}", node.ipv4());
    let asked: [(&[&str], &[&str]); 5] = [
        (&["status"], &["node-1", "connect4"]),
        (&["services"], &["ClusterIP 10.96.0.10:80", "empty"]),
        (&["explain", VIPS[0], "--from", &pod], &["default/web"]),
        (&["explain", &node_port, "--from", &outside], &["default/web", "NodePort"]),
        (&["explain", EMPTY], &["default/empty", "refused"]),
    ];
    let mut outcome = Outcome::default();
    for (args, says) in asked {
        let command = format!("shunt {}", args.join(" "));
        let output = node.shunt(args).await?;
        let missing = says.iter().find(|word| !output.stdout.contains(**word));
        ensure!(
            output.status == Some(0) && missing.is_none(),
            "expected `{command}` to say {says:?}; came: status {:?}\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        outcome.transcripts.push(Transcript { command, output: output.stdout });
    }
    outcome.fact(
        "what an operator sees on node-1",
        "read from the kernel's own maps:",
        Value::Null,
    );
    Ok(outcome)
}
