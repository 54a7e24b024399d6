//! Processes of which one leads.
//!
//! `cargo run --example election -- http://127.0.0.1:7400 scheduler ann` stands for the election `scheduler` under the
//! name `ann`. Run it in several terminals: one leads and works, the others wait; end the leader, and the next one leads.
//! Each piece of work is written with the fence of the leadership, so that a leader which was stopped for a while and
//! does not know yet that another one leads writes nothing.

use std::error::Error;
use std::time::Duration;

use lifeboat::client::{Client, Leadership};

/// How long a leader that does not answer leads.
const TTL: Duration = Duration::from_secs(5);
/// Between two pieces of work.
const PERIOD: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoints = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7400".to_owned());
    let name = arguments.next().unwrap_or_else(|| "scheduler".to_owned());
    let me = arguments.next().unwrap_or_else(|| format!("process {}", std::process::id()));
    // How often to work before giving the lead up; for ever when it is left out.
    let turns: u64 = arguments.next().map_or(Ok(u64::MAX), |text| text.parse())?;

    let client = Client::connect(endpoints.split(','))?;
    println!("{me} stands for {name}");
    let leadership = client.election(&name).ttl(TTL).campaign(me.clone()).await?;
    println!("{me} leads, token {}", leadership.token());

    tokio::select! {
        worked = work(&client, &leadership, &name, &me, turns) => worked?,
        () = leadership.lost() => println!("{me} does not lead any more, or may not"),
    }
    leadership.resign().await?;
    println!("{me} has resigned");
    Ok(())
}

/// Writes who worked last, as long as this one leads.
async fn work(
    client: &Client,
    leadership: &Leadership,
    name: &str,
    me: &str,
    turns: u64,
) -> Result<(), Box<dyn Error>> {
    for turn in 1..=turns {
        let text = format!("{me}, token {}, turn {turn}", leadership.token());
        let done = client.txn().compare(leadership.fence()).then_put(format!("{name}-work"), text.clone()).await?;
        if !done.succeeded {
            println!("{me} was overtaken");
            return Ok(());
        }
        println!("{text}");
        tokio::time::sleep(PERIOD).await;
    }
    Ok(())
}
