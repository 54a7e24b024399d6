//! A counter that many processes raise at once, by compare and set.
//!
//! `cargo run --example counter -- http://127.0.0.1:7400 visits 10` raises the counter `visits` ten times. Run several
//! at once: none of the steps gets lost. Kill a leader meanwhile: each step is still counted once, because the client
//! sends it again under the same idempotency key.

use std::error::Error;

use lifeboat::client::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoints = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7400".to_owned());
    let name = arguments.next().unwrap_or_else(|| "counter".to_owned());
    let steps: u32 = arguments.next().map_or(Ok(1), |text| text.parse())?;

    let client = Client::connect(endpoints.split(','))?;
    for _ in 0..steps {
        let count = raise(&client, &name).await?;
        println!("{count}");
    }
    Ok(())
}

/// Raises the counter by one and gives what it is then.
async fn raise(client: &Client, name: &str) -> Result<u64, Box<dyn Error>> {
    loop {
        let key = name.to_owned();
        // Write only if the key is still as it was read.
        let (count, put) = match client.get(key.clone()).await? {
            None => (1, client.put(key, "1").if_absent()),
            Some(item) => {
                let value = item.value.unwrap_or_default();
                let count = std::str::from_utf8(&value)?.parse::<u64>()? + 1;
                (count, client.put(key, count.to_string()).if_revision(item.meta.mod_revision))
            }
        };
        match put.await {
            Ok(_) => return Ok(count),
            // Somebody else was faster: read again.
            Err(error) if error.condition_failed().is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
}
