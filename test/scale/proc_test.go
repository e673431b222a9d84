package scale_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// cpuTime returns the CPU time of a process and its ended children, in seconds.
func cpuTime(t testing.TB, pid int) float64 {
	t.Helper()
	// The clock of a process counts nanoseconds (clock_getcpuclockid(3)), but /proc counts only ticks.
	var own unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &own); err != nil {
		t.Fatalf("read the CPU time: %v", err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// proc_pid_stat(5) numbers the fields from 1. The first field after the name in brackets is field 3. The times of
	// ended children, cutime and cstime, are the fields 16 and 17.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const tick = 100 // sysconf(_SC_CLK_TCK) on all architectures of Go
	children := 0.0
	for _, f := range fields[13:15] {
		ticks, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		children += float64(ticks) / tick
	}
	return float64(own.Nano())/1e9 + children
}

type cpuUse struct {
	Seconds, Wall          float64
	Changes, Events, Bytes int64
	// Decoding is the CPU time of a program that only decodes the same events.
	Decoding float64
}

// window measures the agent's CPU time. If the request has a rate (events per second), a stream of events runs at the
// same time, and so does a program that only decodes these events.
func (n *node) window(r request) cpuUse {
	pid, decoder := n.AgentPID(), 0
	if r.Rate > 0 {
		var stop func()
		decoder, stop = n.startDecoder()
		defer stop()
		n.background(r.Rate, r.Mix)
		defer n.background(0, "")
		time.Sleep(settle)
	}
	var decoded float64
	if decoder > 0 {
		decoded = cpuTime(n, decoder)
	}
	before, sent, began := cpuTime(n, pid), n.server.Sent()["pods"], time.Now()
	time.Sleep(time.Duration(r.Seconds * float64(time.Second)))
	after := n.server.Sent()["pods"]
	use := cpuUse{
		Seconds: cpuTime(n, pid) - before, Wall: time.Since(began).Seconds(), Changes: after.Changes - sent.Changes,
		Events: after.Events - sent.Events, Bytes: after.Bytes - sent.Bytes,
	}
	if decoder > 0 {
		use.Decoding = cpuTime(n, decoder) - decoded
	}
	return use
}

func (n *node) startDecoder() (pid int, stop func()) {
	n.Helper()
	watches := n.server.Sent()["pods"].Watches
	cmd := exec.Command("/proc/self/exe", "-decode", n.kubeconfig())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	n.Eventually("the decoder watches pods", func() error {
		if n.server.Sent()["pods"].Watches <= watches {
			return errors.New("it doesn't")
		}
		return nil
	})
	return cmd.Process.Pid, func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func decode(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx := context.Background()
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	for range w.ResultChan() {
	}
	return errors.New("the watch has ended")
}

// memory is in MB of 10^6 bytes. Anonymous is the part of RSS that no file backs, and Peak is the highest RSS.
type memory struct{ RSS, Anonymous, Peak float64 }

func (n *node) memory() memory {
	n.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.AgentPID()))
	if err != nil {
		n.Fatal(err)
	}
	var m memory
	for line := range strings.Lines(string(data)) {
		var kb float64
		name, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(rest, "%f kB", &kb); err != nil {
			continue
		}
		mb := kb * 1024 / 1e6
		switch name {
		case "VmRSS":
			m.RSS = mb
		case "RssAnon":
			m.Anonymous = mb
		case "VmHWM":
			m.Peak = mb
		}
	}
	return m
}
