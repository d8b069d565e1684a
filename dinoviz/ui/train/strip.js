// Snapshots of the teacher's attention and PCA. Scrubbing sends no request: all pictures are loaded before. New snapshots
// change elements instead of replacing them. element, props and watch are given by gradio.
const find = selector => element.querySelector(selector)
const root = find('.dv-strip'), probes = find('.dv-probes'), film = find('.dv-film')
const slider = find('input[type=range]'), play = find('.dv-play'), when = find('.dv-when')
const PACE = 400  // milliseconds per snapshot, when played
const VIEWS = [['attention', 'Attention'], ['pca', 'Patch PCA']]
const images = new Map()  // pictures by address, so that the browser keeps all
let at = 0, probe = 0   // the chosen snapshot, and the picture of the film
let following = true    // show the newest snapshot, until an older one is chosen
let playing = null
let run = null, length = 0

const frames = () => props.frames ?? []
const source = path => `${window.gradio_config?.root ?? ''}/gradio_api/file=${path}`

function keep(path) {
    if (images.has(path)) return
    const image = new Image()
    image.src = source(path)
    image.decode().catch(() => {}).finally(render)
    images.set(path, image)
}

// The old picture stays until the new one is loaded, so that nothing flickers.
function put(image, path, text) {
    image.hidden = !path
    if (!path || !images.get(path).complete) return
    if (image.getAttribute('src') !== source(path)) image.src = source(path)
    image.alt = text
}

function words({step, epoch, knn}) {
    const accuracy = typeof knn === 'number' ? `, k-NN ${Math.round(100 * knn)} %` : ''
    return `step ${step}, epoch ${epoch.toFixed(1)}${accuracy}`
}

// Adjust the number of children; existing ones stay.
function fill(parent, count, make) {
    while (parent.children.length > count) parent.lastChild.remove()
    while (parent.children.length < count) parent.append(make(parent.children.length))
}

function row(i) {
    const button = document.createElement('button')
    button.type = 'button'
    const cell = (name, title) => `<span data-view="${name}"><img alt="" draggable="false"><small>${title}</small></span>`
    button.innerHTML = cell('picture', 'Picture') + VIEWS.map(view => cell(...view)).join('')
    button.title = 'Show the snapshots of this picture'
    button.addEventListener('click', () => { probe = i; render() })
    return button
}

function still(i) {
    const button = document.createElement('button')
    button.type = 'button'
    button.innerHTML = VIEWS.map(() => '<img alt="" draggable="false">').join('') + '<small></small>'
    button.addEventListener('click', () => { stop(); go(i) })
    return button
}

function render() {
    const all = frames(), frame = all[at]
    root.classList.toggle('dv-empty', !frame)
    if (!frame) {
        fill(probes, 0)
        fill(film, 0)
        return
    }
    const text = words(frame), pictures = props.probes ?? []
    slider.max = all.length - 1
    slider.value = at
    slider.disabled = play.disabled = all.length < 2
    slider.setAttribute('aria-valuetext', text)
    when.textContent = text
    root.dataset.following = following
    play.dataset.playing = Boolean(playing)
    play.setAttribute('aria-label', playing ? 'Pause' : 'Play')
    fill(probes, frame.attention.length, row)
    probe = Math.min(probe, Math.max(0, frame.attention.length - 1))
    for (const [i, button] of [...probes.children].entries()) {
        const [picture, attention, pca] = button.querySelectorAll('img')
        picture.parentNode.hidden = !pictures[i]
        put(picture, pictures[i], `picture ${i + 1}`)
        put(attention, frame.attention[i], `attention in picture ${i + 1}, ${text}`)
        put(pca, frame.pca[i], `patch PCA of picture ${i + 1}, ${text}`)
        button.setAttribute('aria-pressed', i === probe)
    }
    fill(film, all.length, still)
    for (const [i, button] of [...film.children].entries()) {
        const label = words(all[i])
        const stills = button.querySelectorAll('img')
        VIEWS.forEach(([name], j) => put(stills[j], all[i][name][probe], ''))
        button.querySelector('small').textContent = all[i].step
        button.setAttribute('aria-label', label)
        button.title = label
        button.setAttribute('aria-current', i === at)
        button.tabIndex = i === at ? 0 : -1  // one stop of the Tab key; arrow keys move within
    }
}

// Into the middle of the film, without moving the page.
function reveal() {
    const chosen = film.children[at]
    if (chosen) film.scrollLeft = chosen.offsetLeft - (film.clientWidth - chosen.offsetWidth) / 2
}

function go(place) {
    const last = frames().length - 1
    at = Math.max(0, Math.min(place, last))
    following = at >= last  // also without any snapshot
    render()
    reveal()
}

function stop() {
    clearInterval(playing)
    playing = null
    play.dataset.playing = false
    play.setAttribute('aria-label', 'Play')
}

function toggle() {
    if (playing) return stop()
    playing = setInterval(() => {
        if (!element.isConnected) return stop()
        if (at + 1 >= frames().length - 1) stop()
        go(at + 1)
    }, PACE)
    go(at === frames().length - 1 ? 0 : at)
}

function take() {
    const all = frames()
    if (props.run !== run || all.length < length) { stop(); following = true; probe = 0 }
    run = props.run
    length = all.length
    const paths = [...all.flatMap(frame => [...frame.attention, ...frame.pca]), ...(props.probes ?? [])]
    const present = new Set(paths)
    present.forEach(keep)
    if (following && !playing) go(all.length - 1)
    else { at = Math.min(at, Math.max(0, all.length - 1)); render() }
    for (const path of images.keys()) if (!present.has(path)) images.delete(path)
}

slider.addEventListener('input', () => { stop(); go(Number(slider.value)) })
play.addEventListener('click', toggle)
film.addEventListener('keydown', event => {
    const last = frames().length - 1
    const place = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last}[event.key]
    if (place === undefined) return
    event.preventDefault()
    stop()
    go(place)
    film.children[at].focus({preventScroll: true})
})
watch(['frames', 'probes', 'run'], take)
take()
