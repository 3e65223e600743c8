//! Where blobs are: files of the data folder, or a bucket.

use crate::{
    config::{BlobsKind, Config},
    layout::Layout,
};
use anyhow::Context;
use axum::Router;
use blobs::{Blobs, Damage, FsBlobs};
use blobs_s3::S3Blobs;
use chrono::TimeDelta;
use kit::keys::Keys;
use std::{io, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Between two looks for uploads that nobody goes on with.
const LOOK: Duration = Duration::from_secs(3600);
/// An upload that lasts longer is given up.
const STALE: TimeDelta = TimeDelta::hours(24);

/// The blobs of this process.
#[derive(Clone, Debug)]
pub enum Stored {
    /// In a folder, which this process serves itself.
    Fs(FsBlobs),
    /// In a bucket, which agents and people reach themselves.
    S3(S3Blobs),
}

impl Stored {
    /// As the configuration says.
    ///
    /// # Errors
    /// The folder cannot be made, or the bucket is missing or does not open.
    pub async fn open(config: &Config, layout: &Layout, keys: &Keys) -> anyhow::Result<Self> {
        if config.blobs.kind == BlobsKind::Fs {
            let files = FsBlobs::open(&layout.join("blobs"), &keys.of("blob urls")).await;
            return Ok(Self::Fs(files.context("the blobs' folder")?));
        }
        let bucket = bucket(config)?;
        bucket.check().await.context("[blobs]")?;
        Ok(Self::S3(bucket))
    }

    /// To be read only: nothing is swept, and no URL of ours can be signed.
    ///
    /// # Errors
    /// The address of the store cannot be read.
    pub fn for_audit(config: &Config, layout: &Layout) -> anyhow::Result<Self> {
        Ok(match config.blobs.kind {
            BlobsKind::Fs => Self::Fs(FsBlobs::open_for_audit(&layout.join("blobs"))),
            BlobsKind::S3 => Self::S3(bucket(config)?),
        })
    }

    /// The port.
    pub fn port(&self) -> Arc<dyn Blobs> {
        match self {
            Self::Fs(files) => Arc::new(files.clone()),
            Self::S3(bucket) => Arc::new(bucket.clone()),
        }
    }

    /// Routes that answer to signed URLs: none where the store answers itself.
    pub fn routes(&self) -> Router {
        match self {
            Self::Fs(files) => files.router(),
            Self::S3(_) => Router::new(),
        }
    }

    /// Every damaged blob, and how many were read.
    ///
    /// # Errors
    /// The store cannot be read at all.
    pub async fn audit(&self) -> io::Result<(u64, Vec<Damage>)> {
        match self {
            Self::Fs(files) => files.audit().await,
            Self::S3(bucket) => bucket.audit().await,
        }
    }

    /// Gives up stale uploads now and every hour, until `stop`. Several processes may do it.
    pub fn keep(&self, stop: CancellationToken) {
        let Self::S3(bucket) = self else { return };
        let bucket = bucket.clone();
        let looks = async move {
            loop {
                match bucket.abort_stale(STALE).await {
                    Ok(0) => {}
                    Ok(uploads) => tracing::info!(uploads, "stale uploads were given up"),
                    Err(error) => tracing::warn!(%error, "stale uploads cannot be looked for"),
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::spawn(async move { stop.run_until_cancelled_owned(looks).await });
    }
}

fn bucket(config: &Config) -> anyhow::Result<S3Blobs> {
    let ours = &config.blobs;
    let bucket = S3Blobs::new(&blobs_s3::Config {
        endpoint: ours.endpoint.clone(),
        public_endpoint: ours.public_endpoint.clone(),
        region: ours.region.clone(),
        bucket: ours.bucket.clone(),
        access_key: ours.access_key.clone(),
        secret_key: ours.secret_key.clone(),
        path_style: ours.path_style,
    });
    bucket.context("[blobs]")
}
