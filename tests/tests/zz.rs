//! debug
use lab::cluster::Cluster;
use lab::objects::{Port, service};
use lab::{Ask, LabConfig, Serve};
const WEB: [Port<'static>; 1] = [Port { name: "http", protocol: "TCP", port: 80, target: 8080 }];
#[tokio::test]
async fn debug() -> anyhow::Result<()> {
    let cluster = Cluster::start(LabConfig::default()).await?;
    let lab = &cluster.lab;
    let p = lab.add_pod(lab.node(0), "web-0").await?;
    p.serve(Serve::tcp(8080)).await?;
    let q = lab.add_pod(lab.node(1), "web-1").await?;
    q.serve(Serve::tcp(8080)).await?;
    cluster.publish(&service("web", &["10.96.0.10"], &WEB), &WEB, &[&p, &q])?;
    let c = lab.add_pod(lab.node(0), "client").await?;
    for _ in 0..4 { println!("{:?}", c.ask(Ask::tcp("10.96.0.10:80").timeout(std::time::Duration::from_secs(1))).await); }
    for a in [&["status"][..], &["services"], &["backends"], &["flows"], &["explain", "10.96.0.10:80"]] {
        let o = lab.node(0).shunt(a).await?;
        println!("{}{}", o.stdout, o.stderr);
    }
    Ok(())
}
