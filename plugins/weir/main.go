// Command weir is the CNI plugin: it gives a container its link to the node's bridge, its addresses, and its place in
// the sets that policy is enforced by. The runtime calls it; see the CNI specification, "Section 2".
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/weir-net/weir/internal/version"
)

// supported are the versions of the CNI specification that the plugin speaks.
var supported = cniversion.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0").SupportedVersions()

func main() {
	// It lives for milliseconds and does one thing after the other: threads that could help take 4 % of its time
	// (make bench-cni).
	runtime.GOMAXPROCS(1)
	os.Exit(run())
}

// run answers in the version of the specification that the runtime speaks, also where there is no answer but an
// error.
func run() int {
	if os.Getenv("CNI_COMMAND") == "" { // a person runs it: stdin may be a terminal
		return about(os.Args[1:])
	}
	c, err := readCall()
	if err == nil {
		err = c.do()
	}
	if err == nil {
		return 0
	}
	// Whatever can be said of the caller's input has a code of the specification's; the rest is an I/O failure.
	e := types.NewError(types.ErrIOFailure, err.Error(), "")
	_ = errors.As(err, &e)
	printError(e, c.spoken())
	return 1
}

// about says what the program is, on stderr as CNI plugins do; with --version it prints the version alone, on stdout.
func about(args []string) int {
	if len(args) > 0 && args[0] == "--version" {
		fmt.Println(version.Of("weir"))
		return 0
	}
	fmt.Fprintf(os.Stderr, "weir: pod network and network policy\n%s\nCNI protocol versions supported: %s\n",
		version.Of("weir"), strings.Join(supported, ", "))
	return 0
}

// printVersion answers VERSION: cniVersion is that of the question (CNI specification 1.1, "Section 5: Version").
func printVersion(c *call) error {
	return printJSON(struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}{c.spoken(), supported})
}

// printError answers with the error (CNI specification 1.1, "Section 5: Error").
func printError(e *types.Error, spoken string) {
	err := printJSON(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{spoken, e})
	if err != nil {
		fmt.Fprintf(os.Stderr, "weir: %v, while answering with %v\n", err, e)
	}
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("write the answer to stdout: %v", err), "")
	}
	return nil
}
