//! `lifeboat lease`: grant, keep alive, end, look at, list.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, json, line};
use super::text::{duration, line_of, span};
use crate::api::Lease;
use crate::client::LeaseState;

/// Leases in one question.
const PAGE: u64 = 1000;

/// `lifeboat lease`.
#[derive(Debug, Args)]
pub struct LeaseArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Grant a lease and print its id
    Grant {
        /// How long it lives without a keep-alive: 1s to 30 days, whole seconds
        #[arg(value_parser = duration)]
        ttl: Duration,
        /// Its id; drawn when it is left out
        #[arg(long)]
        id: Option<u64>,
        #[command(flatten)]
        connect: Connect,
    },
    /// Keep a lease alive until interrupted or until it is lost
    Keepalive {
        /// The lease
        id: u64,
        /// Send one keep-alive and end
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// End a lease; its keys go with it
    Revoke {
        /// The lease
        id: u64,
        #[command(flatten)]
        connect: Connect,
    },
    /// Show a lease with its keys
    Get {
        /// The lease
        id: u64,
        #[command(flatten)]
        connect: Connect,
    },
    /// List all leases
    List {
        #[command(flatten)]
        connect: Connect,
    },
}

/// Does what is asked about leases.
pub async fn lease(args: LeaseArgs) -> Result<Exit, Trouble> {
    match args.what {
        What::Grant { ttl, id, connect } => grant(ttl, id, &connect).await,
        What::Keepalive { id, once, connect } => keepalive(id, once, &connect).await,
        What::Revoke { id, connect } => revoke(id, &connect).await,
        What::Get { id, connect } => get(id, &connect).await,
        What::List { connect } => list(&connect).await,
    }
}

async fn grant(ttl: Duration, id: Option<u64>, connect: &Connect) -> Result<Exit, Trouble> {
    let client = connect.client()?;
    let granted = match id {
        Some(id) => client.grant_as(id, ttl).await?,
        None => client.grant(ttl).await?,
    };
    match connect.format() {
        Format::Json => json(&granted)?,
        Format::Plain => line(&granted.id.to_string())?,
        Format::Table => line(&format!("lease {} lives {}", granted.id, span(granted.ttl_seconds as f64)))?,
    }
    Ok(Exit::Done)
}

async fn keepalive(id: u64, once: bool, connect: &Connect) -> Result<Exit, Trouble> {
    let client = connect.client()?;
    if once {
        let kept = client.keep_alive(id).await?;
        match connect.format() {
            Format::Json => json(&kept)?,
            _ => line(&kept.ttl_seconds.to_string())?,
        }
        return Ok(Exit::Done);
    }
    let keeper = client.keep_existing(id).await?;
    tokio::select! {
        state = keeper.lost() => {
            let how = if state == LeaseState::Lost { "has ended" } else { "may have ended: no member answered in time" };
            Err(Trouble::new(Exit::Lost, format!("the lease {id} {how}")))
        }
        stopped = tokio::signal::ctrl_c() => {
            stopped?;
            Ok(Exit::Done)
        }
    }
}

async fn revoke(id: u64, connect: &Connect) -> Result<Exit, Trouble> {
    let Some(revoked) = connect.client()?.revoke(id).await? else {
        return Err(Trouble::new(Exit::NotFound, format!("there is no lease {id}")));
    };
    match connect.format() {
        Format::Json => json(&revoked)?,
        Format::Plain => line(&revoked.deleted.to_string())?,
        Format::Table => line(&format!("ended lease {id} with {} keys", revoked.deleted))?,
    }
    Ok(Exit::Done)
}

async fn get(id: u64, connect: &Connect) -> Result<Exit, Trouble> {
    let lease = connect.client()?.lease(id).await?;
    let format = connect.format();
    if format == Format::Json {
        json(&lease)?;
        return Ok(Exit::Done);
    }
    let (ttl, left) = (lease.ttl_seconds as f64, lease.remaining_seconds);
    match format {
        Format::Table => line(&format!("lease {id} lives {}, {} are left", span(ttl), span(left)))?,
        _ => line(&format!("{id}\t{}\t{left}", lease.ttl_seconds))?,
    }
    lease.keys.iter().try_for_each(|key| line(&line_of(&key.0)))?;
    if lease.more {
        eprintln!("there are more keys than these");
    }
    Ok(Exit::Done)
}

async fn list(connect: &Connect) -> Result<Exit, Trouble> {
    let client = connect.client()?;
    let format = connect.format();
    let mut rows = Rows::new(format, ["LEASE", "TTL"]);
    let (mut after, mut more) = (0, true);
    while more {
        let page = client.leases(after, PAGE).await?;
        for Lease { id, ttl_seconds } in &page.leases {
            match format {
                Format::Json => json(&Lease { id: *id, ttl_seconds: *ttl_seconds })?,
                Format::Plain => rows.add([id.to_string(), ttl_seconds.to_string()])?,
                Format::Table => rows.add([id.to_string(), span(*ttl_seconds as f64)])?,
            }
            after = *id;
        }
        more = page.more && !page.leases.is_empty();
    }
    if format != Format::Json {
        rows.finish()?;
    }
    Ok(Exit::Done)
}
