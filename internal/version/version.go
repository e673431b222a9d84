// Package version says from which commit the running program was built. The Go toolchain writes the commit into a
// program that it builds in a git work tree.
//
// Invariants:
//   - The package reads no file: the text comes from the running program itself.
//   - A commit that is unknown, or that had changes, is called so.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Of returns one line with the program's name, its commit, the commit's time, and Go's version and platform:
//
//	weirctl: commit 5a067641f0ab (2026-11-27T21:12:52Z), go1.26.8 linux/amd64
//
// Equivalent to: go version -m bin/weirctl
func Of(program string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return line(program, info)
}

// line is Of for the given build information. It says "commit unknown" for a build outside of a git work tree.
func line(program string, info *debug.BuildInfo) string {
	var commit, when, modified string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.time":
			when = " (" + s.Value + ")"
		case "vcs.modified":
			if s.Value == "true" {
				modified = " with changes"
			}
		}
	}
	if commit == "" {
		commit = "unknown"
	}
	if len(commit) > 12 {
		commit = commit[:12]
	}
	return fmt.Sprintf("%s: commit %s%s%s, %s %s/%s", program, commit, modified, when, runtime.Version(), runtime.GOOS,
		runtime.GOARCH)
}
