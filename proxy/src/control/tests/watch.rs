//! Tests of the watcher on real files, with tokio's clock, so that waiting takes no time. An event is available as soon
//! as the system call that causes it returns.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::symlink,
};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Watches a file in its own directory, after all earlier changes were reported.
async fn watching(file: &str) -> (TempDir, Watcher) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config"), "1").unwrap();
    let mut watcher = Watcher::new(Arc::default());
    watcher.watch(Dependencies { files: vec![dir.path().join(file)], ..Dependencies::default() });
    watcher.changed().await;
    assert!(!is_told(&mut watcher).await);
    (dir, watcher)
}

/// Whether a change is reported within a second of tokio's clock.
async fn is_told(watcher: &mut Watcher) -> bool {
    timeout(LATEST, watcher.changed()).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_written_file_is_reported_when_closed() {
    let (dir, mut watcher) = watching("config").await;
    let mut file = File::create(dir.path().join("config")).unwrap();
    file.write_all(b"half").unwrap();
    assert!(!is_told(&mut watcher).await);
    file.write_all(b" and half").unwrap();
    assert!(!is_told(&mut watcher).await);
    assert!(watcher.is_written_to(), "a load in progress is told not to read it");
    drop(file);
    assert!(is_told(&mut watcher).await);
    assert!(!watcher.is_written_to());
    assert!(!is_told(&mut watcher).await, "once");
}

#[tokio::test(start_paused = true)]
async fn a_new_file_is_reported_when_closed() {
    let (dir, mut watcher) = watching("later").await;
    let mut file = File::create(dir.path().join("later")).unwrap();
    file.write_all(b"half").unwrap();
    assert!(!is_told(&mut watcher).await);
    drop(file);
    assert!(is_told(&mut watcher).await);
    fs::remove_file(dir.path().join("later")).unwrap();
    assert!(is_told(&mut watcher).await);
    fs::hard_link(dir.path().join("config"), dir.path().join("later")).unwrap();
    assert!(is_told(&mut watcher).await, "a hard link is complete immediately");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_never_closed_is_reported_eventually() {
    let (dir, mut watcher) = watching("config").await;
    let mut file = OpenOptions::new().append(true).open(dir.path().join("config")).unwrap();
    file.write_all(b"2").unwrap();
    watcher.hear();
    assert!(timeout(UNCLOSED / 2, watcher.changed()).await.is_err());
    file.write_all(b"3").unwrap();
    watcher.hear();
    assert!(timeout(UNCLOSED - LATEST, watcher.changed()).await.is_err(), "it was written to meanwhile");
    watcher.changed().await;
}

#[tokio::test(start_paused = true)]
async fn a_renamed_file_is_reported_immediately() {
    let (dir, mut watcher) = watching("config").await;
    let mut open = OpenOptions::new().append(true).open(dir.path().join("config")).unwrap();
    open.write_all(b"2").unwrap();
    fs::write(dir.path().join("new"), "3").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("config")).unwrap();
    assert!(is_told(&mut watcher).await);
}

#[tokio::test(start_paused = true)]
async fn other_files_in_the_directory_are_ignored() {
    let (dir, mut watcher) = watching("config").await;
    fs::write(dir.path().join("access.log"), "a line").unwrap();
    fs::remove_file(dir.path().join("access.log")).unwrap();
    fs::read(dir.path().join("config")).unwrap();
    assert!(!is_told(&mut watcher).await);
}

#[tokio::test(start_paused = true)]
async fn a_folder_is_replaced_again_and_again() {
    let (dir, mut watcher) = watching("folder/config").await;
    let write = || fs::write(dir.path().join("folder/config"), "1").unwrap();
    for round in 0..3 {
        fs::create_dir(dir.path().join("new")).unwrap();
        fs::write(dir.path().join("new/config"), "1").unwrap();
        let _ = fs::rename(dir.path().join("folder"), dir.path().join(format!("old{round}")));
        fs::rename(dir.path().join("new"), dir.path().join("folder")).unwrap();
        assert!(is_told(&mut watcher).await, "{round}");
        write();
        assert!(is_told(&mut watcher).await, "{round}: the new one is watched");
        // Away and back before anything has checked.
        fs::rename(dir.path().join("folder"), dir.path().join("away")).unwrap();
        fs::rename(dir.path().join("away"), dir.path().join("folder")).unwrap();
        assert!(is_told(&mut watcher).await, "{round}");
        write();
        assert!(is_told(&mut watcher).await, "{round}: still");
        fs::remove_dir_all(dir.path().join("folder")).unwrap();
        assert!(is_told(&mut watcher).await, "{round}");
        fs::create_dir(dir.path().join("folder")).unwrap();
        write();
        assert!(is_told(&mut watcher).await, "{round}: made again");
    }
    assert!(!is_told(&mut watcher).await);
    fs::write(dir.path().join("old1/config"), "1").unwrap();
    assert!(!is_told(&mut watcher).await, "a directory that was moved away is no longer watched");
}

#[tokio::test(start_paused = true)]
async fn each_link_of_a_chain_is_watched() {
    let (dir, mut watcher) = watching("first").await;
    for name in ["a", "b"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("config"), name).unwrap();
    }
    let turn = |link: &str, target: &str| {
        symlink(target, dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join(link)).unwrap();
    };
    turn("third", "a");
    turn("second", "third/config");
    turn("first", "second");
    assert!(is_told(&mut watcher).await);
    for (link, target) in [("third", "b"), ("second", "a/config"), ("first", "b/config"), ("first", "second")] {
        turn(link, target);
        assert!(is_told(&mut watcher).await, "{link} -> {target}");
    }
    fs::write(dir.path().join("a/config"), "3").unwrap();
    assert!(is_told(&mut watcher).await);
    fs::write(dir.path().join("b/config"), "3").unwrap();
    assert!(!is_told(&mut watcher).await, "it is not on the way any more");
}

#[tokio::test(start_paused = true)]
async fn writes_under_another_name_are_reported() {
    let (dir, mut watcher) = watching("config").await;
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    fs::hard_link(dir.path().join("config"), dir.path().join("elsewhere/config")).unwrap();
    // The link count is a change of the file.
    assert!(is_told(&mut watcher).await);
    fs::write(dir.path().join("elsewhere/config"), "2").unwrap();
    assert!(is_told(&mut watcher).await);
}

/// Without inotify: replaced files are detected at the next poll, written files when the write has ended.
#[tokio::test(start_paused = true)]
async fn files_are_polled_without_inotify() {
    let (dir, mut watcher) = watching("config").await;
    watcher.watched.clear();
    let inotify = watcher.inotify.take().unwrap();
    let mut watcher = Watcher { next_look: Instant::now() + LOOK, ..watcher };
    fs::write(dir.path().join("new"), "2").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("config")).unwrap();
    assert!(timeout(2 * LOOK, watcher.changed()).await.is_ok());
    drop(inotify);
}

/// Watches the entries `*.yaml` of a directory `parts`, and a file elsewhere.
async fn searching() -> (TempDir, Watcher) {
    let (dir, mut watcher) = watching("config").await;
    let folder = SearchedFolder::new(dir.path().join("parts"), "*.yaml").unwrap();
    watcher.watch(Dependencies { files: vec![dir.path().join("config")], folders: vec![folder] });
    assert!(is_told(&mut watcher).await);
    (dir, watcher)
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_searched_directory_are_reported() {
    let (dir, mut watcher) = searching().await;
    let parts = dir.path().join("parts");
    fs::create_dir(&parts).unwrap();
    assert!(is_told(&mut watcher).await, "the directory itself");
    let mut file = File::create(parts.join("a.yaml")).unwrap();
    file.write_all(b"half").unwrap();
    assert!(!is_told(&mut watcher).await, "it is still being written");
    drop(file);
    assert!(is_told(&mut watcher).await);
    fs::write(parts.join("a.yaml"), "2").unwrap();
    assert!(is_told(&mut watcher).await);
    fs::write(parts.join("new"), "3").unwrap();
    assert!(!is_told(&mut watcher).await, "the pattern does not match");
    fs::rename(parts.join("new"), parts.join("b.yaml")).unwrap();
    assert!(is_told(&mut watcher).await);
    fs::remove_file(parts.join("a.yaml")).unwrap();
    assert!(is_told(&mut watcher).await);
    fs::rename(&parts, dir.path().join("gone")).unwrap();
    assert!(is_told(&mut watcher).await);
    fs::write(dir.path().join("gone/b.yaml"), "4").unwrap();
    assert!(!is_told(&mut watcher).await, "it is not in the way any more");
    symlink("gone", &parts).unwrap();
    assert!(is_told(&mut watcher).await, "the directory may be a link");
    fs::write(dir.path().join("gone/c.yaml"), "5").unwrap();
    assert!(is_told(&mut watcher).await);
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_searched_directory_are_polled_without_inotify() {
    let (dir, watcher) = searching().await;
    let mut watcher = Watcher { inotify: None, watched: HashMap::new(), next_look: Instant::now() + LOOK, ..watcher };
    fs::create_dir(dir.path().join("parts")).unwrap();
    assert!(timeout(2 * LOOK, watcher.changed()).await.is_ok());
    fs::write(dir.path().join("parts/a.yaml"), "1").unwrap();
    assert!(timeout(2 * LOOK, watcher.changed()).await.is_ok());
}
