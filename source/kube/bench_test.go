package kube

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/weir-net/weir/policy"
	scale "github.com/weir-net/weir/test/scale/cluster"
)

func realisticPod(i int, unique bool) *corev1.Pod {
	app := fmt.Sprintf("service-%d", i/10)
	hash := fmt.Sprintf("%010x", i/10*7919)
	p := scale.NewPod(fmt.Sprintf("team-%d", i/100), fmt.Sprintf("%s-%s-%05x", app, hash, i), app,
		types.UID(fmt.Sprintf("4f3c2a10-7b1e-4c55-9d0a-%012x", i)))
	p.Labels["pod-template-hash"], p.Labels["app.kubernetes.io/managed-by"] = hash, "Helm"
	p.Labels["app.kubernetes.io/component"], p.Labels["helm.sh/chart"] = "server", "service-1.14.2"
	if unique {
		p.Labels["statefulset.kubernetes.io/pod-name"] = p.Name
	}
	p.Spec.NodeName = fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/100/250, i/100%250)
	scale.Run(p, fmt.Sprintf("100.%d.%d.%d", 64+i/65536, i/256%256, i%256))
	return p
}

// BenchmarkPodEvent measures how long the source takes for one event of a pod in a cluster of 10,000 pods.
func BenchmarkPodEvent(b *testing.B) {
	for _, bc := range []struct {
		name   string
		change func(p *corev1.Pod, i int)
	}{
		{"means nothing", func(*corev1.Pod, int) {}},
		{"label", func(p *corev1.Pod, i int) { p.Labels["app.kubernetes.io/component"] = fmt.Sprint(i % 2) }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			c := began(b)
			for i := range 10_000 {
				add(b, c.mirrors.pods, realisticPod(i, false))
			}
			c.nextDelta()
			pods := [2]*corev1.Pod{realisticPod(77, false), realisticPod(77, false)}
			for i := range pods {
				bc.change(pods[i], i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				_ = c.mirrors.pods.Update(pods[i%2])
			}
		})
	}
}

func encode(b *testing.B, o apiruntime.Object) []byte {
	b.Helper()
	raw, err := apiruntime.Encode(clientscheme.Codecs.EncoderForVersion(
		protobuf.NewSerializer(clientscheme.Scheme, clientscheme.Scheme), corev1.SchemeGroupVersion), o)
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

// BenchmarkMemory measures the memory of 100,000 pods, and the time to decode and store them.
func BenchmarkMemory(b *testing.B) {
	const pods = 100_000
	for _, unique := range []bool{false, true} {
		b.Run(map[bool]string{false: "ten replicas", true: "unique labels"}[unique], func(b *testing.B) {
			for b.Loop() {
				before := live()
				c := began(b)
				decoder := clientscheme.Codecs.UniversalDeserializer()
				var list []any
				var cpu time.Duration
				for i := range pods {
					raw := encode(b, realisticPod(i, unique))
					at := time.Now()
					o, _, err := decoder.Decode(raw, nil, nil)
					if err != nil {
						b.Fatal(err)
					}
					list = append(list, stream(b, c.mirrors.pods, o.(*corev1.Pod)))
					cpu += time.Since(at)
				}
				streamed := live()
				at := time.Now()
				if err := c.mirrors.pods.Replace(list, "1"); err != nil {
					b.Fatal(err)
				}
				replaced := time.Since(at)
				list = nil
				c.nextDelta()
				b.ReportMetric(float64(live()-before)/pods, "B/pod")
				b.ReportMetric(float64(streamed-before)/pods, "B/pod-while-streaming")
				b.ReportMetric(cpu.Seconds(), "s-decoding")
				b.ReportMetric(replaced.Seconds(), "s-replacing")
				runtime.KeepAlive(c)
			}
		})
	}
}

func live() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkCollection measures a garbage collection of an agent that has a cluster in memory: the source's copy of the
// objects, and the engine's indexes. An idle agent collects garbage too, because each resync makes garbage.
func BenchmarkCollection(b *testing.B) {
	for _, pods := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("%d pods", pods), func(b *testing.B) {
			before := live()
			c, engine := began(b), policy.NewEngine("node-0")
			of := scale.New(pods, 0, 100, netip.MustParseAddr("172.20.0.1"), netip.MustParseAddr("172.20.0.2"))
			for i := range (scale.NodeBase{Cluster: of}).Len() {
				add(b, c.mirrors.nodes, scale.NodeBase{Cluster: of}.At(i, 0))
			}
			for i := range (scale.PolicyBase{Cluster: of}).Len() {
				add(b, c.mirrors.policies, scale.PolicyBase{Cluster: of}.At(i, 0))
			}
			for i := range pods {
				add(b, c.mirrors.pods, scale.PodBase{Cluster: of}.At(i, 0))
			}
			func() { // a function of its own, so that the delta is garbage when the function returns
				d := c.nextDelta()
				engine.SetNodes(*d.Nodes)
				engine.Apply(d)
			}()
			size := float64(live()-before) / float64(pods)
			var least time.Duration
			for b.Loop() {
				if took := collection(b); least == 0 || took < least {
					least = took
				}
			}
			b.ReportMetric(float64(least.Microseconds())/1000, "ms-CPU")
			b.ReportMetric(size, "B/pod")
			runtime.KeepAlive(c)
			runtime.KeepAlive(engine)
		})
	}
}

func collection(b *testing.B) time.Duration {
	b.Helper()
	began := cpuTime(b)
	runtime.GC()
	return cpuTime(b) - began
}

// BenchmarkStart measures Run against an API server that streams 100,000 pods, until the first delta. The server only
// sends a file, so nearly all measured time is the source's work.
func BenchmarkStart(b *testing.B) {
	const pods = 100_000
	server, config := newStreams(b)
	file, err := os.Create(filepath.Join(b.TempDir(), "pods"))
	if err != nil {
		b.Fatal(err)
	}
	write := server.encoder(bufferedFile{file, http.Header{}}, apiruntime.ContentTypeProtobuf)
	for i := range pods {
		write(watch.Event{Type: watch.Added, Object: realisticPod(i, false)})
	}
	write(bookmark(&corev1.Pod{}))
	answer := podWatch{file: file.Name(), end: make(chan struct{})}
	for b.Loop() {
		source := sourceOf(b, config)
		before := live()
		peak := watchPeak(b)
		cpu := cpuTime(b)
		ctx, cancel := context.WithCancel(b.Context())
		first, done := make(chan *policy.Delta, 1), make(chan error, 1)
		go func() {
			done <- source.Run(ctx, func(d *policy.Delta, _ error) {
				if len(d.Pods) > 0 {
					first <- d
				}
			})
		}()
		server.pods <- answer
		<-first
		b.ReportMetric((cpuTime(b) - cpu).Seconds(), "s-CPU")
		b.ReportMetric(float64(peak()-before)/pods, "B/pod-at-the-peak")
		b.ReportMetric(float64(live()-before)/pods, "B/pod")
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}

type bufferedFile struct {
	io.Writer
	header http.Header
}

func (f bufferedFile) Header() http.Header { return f.header }
func (f bufferedFile) WriteHeader(int)     {}

func watchPeak(b *testing.B) func() uint64 {
	b.Helper()
	stop, result := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		var peak uint64
		for {
			metrics.Read(sample)
			peak = max(peak, sample[0].Value.Uint64())
			select {
			case <-stop:
				result <- peak
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-result
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
