// Package version returns the commit from which the running program was built. The Go toolchain writes the commit into
// programs that it builds in a git work tree.
//
// Invariants:
//   - The package reads no file: the running program itself contains the commit.
//   - If the commit is unknown, or the work tree had changes, the text that Of returns says so.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Of returns one line with the program's name, its commit, the time of the commit, and Go's version and platform:
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

// line returns the text that the function Of returns, for the given build information. The text contains "commit
// unknown" if the program was built outside of a git work tree.
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
