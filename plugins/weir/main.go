// Command weir is the CNI plugin. The container runtime runs it once for each call (CNI specification 1.1, "Section
// 2: Execution Protocol"): weir reads the call, lets package attachment do the work, and prints the result or the
// error.
//
// Invariants:
//   - ADD refuses a wrong variable or a wrong configuration before it changes anything.
//   - If a step of ADD fails, ADD undoes all steps before it. The error names what could not be undone.
//   - DEL needs only the endpoint record, and can be repeated.
//   - Each error has one of CNI's codes.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/weir-net/weir/internal/version"
)

var supported = cniversion.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0").SupportedVersions()

func main() {
	// The process lives for milliseconds and does one thing after the other. More threads would cost 4 % of its
	// time (make bench-cni).
	runtime.GOMAXPROCS(1)
	os.Exit(run())
}

func run() int {
	if os.Getenv("CNI_COMMAND") == "" { // a person has started the program, and stdin may be a terminal
		return about(os.Args[1:])
	}
	c, err := readCall()
	if err == nil {
		err = c.do()
	}
	if err == nil {
		return 0
	}
	printError(cniError(err), c.spoken())
	return 1
}

// about prints what the program is, for a person who runs it without CNI's variables. With --version it prints to
// stdout, otherwise to stderr, as other CNI plugins do.
func about(args []string) int {
	if len(args) > 0 && args[0] == "--version" {
		fmt.Println(version.Of("weir"))
		return 0
	}
	fmt.Fprintf(os.Stderr, "weir: pod network and network policy\n%s\nCNI protocol versions supported: %s\n",
		version.Of("weir"), strings.Join(supported, ", "))
	return 0
}

func printVersion(c *call) error {
	return printJSON(struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}{c.spoken(), supported})
}

// printError prints the error as JSON (CNI specification 1.1, "Section 5: Error"). spoken is the cniVersion of the
// call.
func printError(e *types.Error, spoken string) {
	err := printJSON(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{spoken, e})
	if err != nil {
		fmt.Fprintf(os.Stderr, "weir: %v, while printing the error %v\n", err, e)
	}
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return refuse(types.ErrIOFailure, "write the answer to stdout: %v", err)
	}
	return nil
}
