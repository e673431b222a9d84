// Package netpol_test runs the specs about NetworkPolicy of Kubernetes' own end-to-end suite
// (k8s.io/kubernetes/test/e2e/network/netpol).
package netpol_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	e2etestingmanifests "k8s.io/kubernetes/test/e2e/testing-manifests"

	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/e2e/network/netpol"
)

const (
	suite = "Netpol"
	// Specs with this label have pods that open SCTP sockets.
	sctp = "Feature:SCTPConnectivity"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	if !hasSCTP() {
		if err := flag.Set("ginkgo.skip", sctp); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	flag.Parse()
	testfiles.AddFileSource(e2etestingmanifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

func TestE2E(t *testing.T) { e2e.RunE2ETests(t) }

func hasSCTP() bool {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 132)
	if err == nil {
		err = syscall.Close(fd)
	}
	return err == nil
}

var _ = ginkgo.ReportAfterSuite("specs", func(r ginkgo.Report) {
	count := map[types.SpecState]int{}
	var lines []string
	for _, s := range r.SpecReports {
		name := s.FullText()
		if s.LeafNodeType != types.NodeTypeIt || !strings.Contains(name, suite) {
			continue
		}
		state, why := s.State, ""
		switch {
		case state == types.SpecStatePassed:
			why = s.RunTime.Round(time.Second).String()
		case state == types.SpecStateSkipped && slices.Contains(s.Labels(), sctp) && !hasSCTP():
			why = "its pods open SCTP sockets, which this kernel doesn't have"
		case state == types.SpecStateSkipped && s.Failure.Message != "":
			why = s.Failure.Message
		case state == types.SpecStateSkipped:
			why = "not chosen"
		default:
			state, why = types.SpecStateFailed, s.Failure.Message+" ("+s.Failure.Location.String()+")"
		}
		count[state]++
		lines = append(lines, fmt.Sprintf("%s: %s: %s", state, name, why))
	}
	slices.Sort(lines)
	fmt.Println(strings.Join(lines, "\n"))
	fmt.Printf("upstream-e2e: %d passed, %d failed, %d skipped\n",
		count[types.SpecStatePassed], count[types.SpecStateFailed], count[types.SpecStateSkipped])
})
